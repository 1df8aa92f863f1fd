import { open, readFile, rename } from "node:fs/promises";

/**
 * Keeps the place in the log in a file. A service with a database stores the cursor there, in the
 * transaction of its work: then nothing is ever processed twice.
 */
export class CursorStore {
  readonly #path: string;
  #cursor = "";

  constructor(path: string) {
    this.#path = path;
  }

  /** The place after what was processed; empty at first. */
  get cursor(): string {
    return this.#cursor;
  }

  async load(): Promise<void> {
    try {
      this.#cursor = (await readFile(this.#path, "utf8")).trim();
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== "ENOENT") throw error;
    }
  }

  /** Replaces the file as a whole: a crash leaves the old cursor or the new one. */
  async save(cursor: string): Promise<void> {
    if (cursor === this.#cursor) return;
    const beside = `${this.#path}.new`;
    const file = await open(beside, "w");
    try {
      await file.writeFile(`${cursor}\n`);
      await file.sync();
    } finally {
      await file.close();
    }
    await rename(beside, this.#path);
    this.#cursor = cursor;
  }
}

/** The newest keys, up to a limit. */
export class Recent {
  readonly #limit: number;
  readonly #keys = new Set<string>();

  constructor(limit: number) {
    this.#limit = limit;
  }

  /** Whether the key is new. */
  add(key: string): boolean {
    if (this.#keys.has(key)) return false;
    this.#keys.add(key);
    if (this.#keys.size > this.#limit) {
      const [oldest] = this.#keys; // Sets iterate in the order of insertion.
      this.#keys.delete(oldest!);
    }
    return true;
  }
}
