/* Loaded before the C library: records what a process does to the files below one directory, in the
 * order in which it happens, and makes one call fail if it is told to.
 *
 * DISK_ROOT   the directory
 * DISK_TRACE  the file that records are appended to (trace.rs reads them)
 * DISK_FAULT  "operation error skipped address address": a call of this operation whose stack has both
 *             addresses fails with this error, the first one after so many that do not; one that
 *             writes first writes half of its bytes. Error -9 kills the process instead.
 *             Addresses are relative to where the program was loaded; 0 stands for any.
 *
 * The lock is held during the call, so that the order of the records is the order of the effects. */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <execinfo.h>
#include <fcntl.h>
#include <link.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { OPEN = 1, WRITE, TRUNCATE, SYNC, RENAME, UNLINK, MKDIR, READ, LIST };
enum { FRAMES_MAX = 28, DESCRIPTORS_MAX = 4096, PATH_MAX_BYTES = 1024 };

struct record {
    uint32_t operation;
    int32_t descriptor;
    int64_t offset;  /* of a write; the flags of an open */
    uint64_t length; /* of what was written, or of a file that was cut */
    int32_t error;   /* 0 where the call succeeded */
    uint16_t frames, path, other_path;
    uint16_t zero;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static const char *root;
static size_t root_length;
static int trace = -1;
static char tracked[DESCRIPTORS_MAX];
static uintptr_t base;
static unsigned fault_operation;
static int fault_error, fault_skipped, fault_half_done;
static uintptr_t fault_addresses[2];

static int find_base(struct dl_phdr_info *info, size_t size, void *data) {
    (void)size, (void)data;
    base = info->dlpi_addr; /* the program comes first */
    return 1;
}

__attribute__((constructor)) static void begin(void) {
    void *frames[FRAMES_MAX];
    const char *path = getenv("DISK_TRACE"), *fault = getenv("DISK_FAULT");
    root = getenv("DISK_ROOT");
    if (!root || !path) return;
    root_length = strlen(root);
    dl_iterate_phdr(find_base, NULL);
    backtrace(frames, FRAMES_MAX); /* loads what it needs */
    if (fault && sscanf(fault, "%u %d %d %lx %lx", &fault_operation, &fault_error, &fault_skipped,
                        &fault_addresses[0], &fault_addresses[1]) != 5)
        abort();
    trace = syscall(SYS_openat, AT_FDCWD, path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    if (trace < 0) abort();
}

static int is_below(const char *path) {
    return trace >= 0 && path && !strncmp(path, root, root_length) &&
           (path[root_length] == '/' || !path[root_length]);
}

static int is_tracked(int descriptor) {
    return trace >= 0 && descriptor >= 0 && descriptor < DESCRIPTORS_MAX && tracked[descriptor];
}

/* Whether this call is the one that is to fail. */
static int is_fault(unsigned operation, uintptr_t *frames, int count) {
    if (operation != fault_operation) return 0;
    for (int wanted = 0; wanted < 2; wanted++) {
        int found = !fault_addresses[wanted];
        for (int frame = 0; frame < count; frame++) found |= frames[frame] == fault_addresses[wanted];
        if (!found) return 0;
    }
    if (fault_skipped-- > 0) return 0;
    if (fault_error == -SIGKILL) kill(getpid(), SIGKILL);
    return 1;
}

struct call {
    struct record record;
    uintptr_t frames[FRAMES_MAX];
    const char *path, *other_path;
};

/* Begins a call. Says whether it is to fail. */
static int enter(struct call *call, unsigned operation, int descriptor) {
    memset(&call->record, 0, sizeof call->record);
    call->path = call->other_path = "";
    call->record.operation = operation;
    call->record.descriptor = descriptor;
    void *frames[FRAMES_MAX];
    int count = backtrace(frames, FRAMES_MAX);
    for (int frame = 0; frame < count; frame++) call->frames[frame] = (uintptr_t)frames[frame] - base;
    call->record.frames = count;
    pthread_mutex_lock(&lock);
    return is_fault(operation, call->frames, count);
}

/* Ends a call: records it, and passes its result on. */
static long leave(struct call *call, long result, const struct iovec *data, int pieces) {
    int error = result < 0 ? errno : 0;
    struct record *record = &call->record;
    record->error = error;
    record->path = strlen(call->path);
    record->other_path = strlen(call->other_path);
    struct iovec all[4 + 1024] = {
        {record, sizeof *record},
        {call->frames, record->frames * sizeof(uintptr_t)},
        {(void *)call->path, record->path},
        {(void *)call->other_path, record->other_path},
    };
    int count = 4;
    if (!error && record->operation == WRITE) {
        uint64_t left = record->length = result;
        for (int piece = 0; piece < pieces && left; piece++) {
            size_t length = data[piece].iov_len < left ? data[piece].iov_len : left;
            all[count++] = (struct iovec){data[piece].iov_base, length};
            left -= length;
        }
    }
    uint64_t expected = 0;
    for (int piece = 0; piece < count; piece++) expected += all[piece].iov_len;
    if (syscall(SYS_writev, trace, all, count) != (long)expected) abort();
    pthread_mutex_unlock(&lock);
    errno = error;
    return result;
}

static long fail(void) {
    fault_operation = 0;
    errno = fault_error;
    return -1;
}

/* A write that is to fail first writes half. */
static long fault_in_write(int descriptor, const struct iovec *data, long offset) {
    size_t half = data[0].iov_len / 2;
    if (fault_half_done || !half) return fail();
    fault_half_done = 1;
    return offset < 0 ? syscall(SYS_write, descriptor, data[0].iov_base, half)
                      : syscall(SYS_pwrite64, descriptor, data[0].iov_base, half, offset);
}

static int open_file(const char *path, int flags, mode_t mode) {
    if (!is_below(path)) return syscall(SYS_openat, AT_FDCWD, path, flags, mode);
    struct call call;
    int fails = enter(&call, OPEN, -1);
    call.path = path;
    call.record.offset = flags;
    int descriptor = fails ? fail() : syscall(SYS_openat, AT_FDCWD, path, flags, mode);
    call.record.descriptor = descriptor;
    if (descriptor >= DESCRIPTORS_MAX) abort();
    if (descriptor >= 0) tracked[descriptor] = 1;
    return leave(&call, descriptor, NULL, 0);
}

#define OPEN_AS(name)                                      \
    int name(const char *path, int flags, ...) {           \
        va_list rest;                                      \
        va_start(rest, flags);                             \
        mode_t mode = va_arg(rest, mode_t);                \
        va_end(rest);                                      \
        return open_file(path, flags, mode);               \
    }
OPEN_AS(open)
OPEN_AS(open64)

int close(int descriptor) {
    if (descriptor >= 0 && descriptor < DESCRIPTORS_MAX) tracked[descriptor] = 0;
    return syscall(SYS_close, descriptor);
}

ssize_t writev(int descriptor, const struct iovec *data, int pieces) {
    if (!is_tracked(descriptor)) return syscall(SYS_writev, descriptor, data, pieces);
    struct call call;
    int fails = enter(&call, WRITE, descriptor);
    call.record.offset = lseek(descriptor, 0, SEEK_CUR);
    long written = fails ? fault_in_write(descriptor, data, -1)
                         : syscall(SYS_writev, descriptor, data, pieces);
    return leave(&call, written, data, pieces);
}

ssize_t write(int descriptor, const void *bytes, size_t length) {
    struct iovec data = {(void *)bytes, length};
    if (!is_tracked(descriptor)) return syscall(SYS_write, descriptor, bytes, length);
    return writev(descriptor, &data, 1);
}

ssize_t pwrite64(int descriptor, const void *bytes, size_t length, off64_t offset) {
    struct iovec data = {(void *)bytes, length};
    if (!is_tracked(descriptor)) return syscall(SYS_pwrite64, descriptor, bytes, length, offset);
    struct call call;
    int fails = enter(&call, WRITE, descriptor);
    call.record.offset = offset;
    long written = fails ? fault_in_write(descriptor, &data, offset)
                         : syscall(SYS_pwrite64, descriptor, bytes, length, offset);
    return leave(&call, written, &data, 1);
}

int ftruncate64(int descriptor, off64_t length) {
    if (!is_tracked(descriptor)) return syscall(SYS_ftruncate, descriptor, length);
    struct call call;
    int fails = enter(&call, TRUNCATE, descriptor);
    call.record.length = length;
    return leave(&call, fails ? fail() : syscall(SYS_ftruncate, descriptor, length), NULL, 0);
}

/* Not waited for: what a flush makes durable is computed from the records. */
static int flush(int descriptor, long call_number) {
    if (!is_tracked(descriptor)) return syscall(call_number, descriptor);
    struct call call;
    int fails = enter(&call, SYNC, descriptor);
    return leave(&call, fails ? fail() : 0, NULL, 0);
}

int fsync(int descriptor) { return flush(descriptor, SYS_fsync); }
int fdatasync(int descriptor) { return flush(descriptor, SYS_fdatasync); }

int rename(const char *from, const char *to) {
    if (!is_below(from)) return syscall(SYS_renameat, AT_FDCWD, from, AT_FDCWD, to);
    struct call call;
    int fails = enter(&call, RENAME, -1);
    call.path = from, call.other_path = to;
    return leave(&call, fails ? fail() : syscall(SYS_renameat, AT_FDCWD, from, AT_FDCWD, to), NULL, 0);
}

int unlink(const char *path) {
    if (!is_below(path)) return syscall(SYS_unlinkat, AT_FDCWD, path, 0);
    struct call call;
    int fails = enter(&call, UNLINK, -1);
    call.path = path;
    return leave(&call, fails ? fail() : syscall(SYS_unlinkat, AT_FDCWD, path, 0), NULL, 0);
}

int mkdir(const char *path, mode_t mode) {
    if (!is_below(path)) return syscall(SYS_mkdirat, AT_FDCWD, path, mode);
    struct call call;
    int fails = enter(&call, MKDIR, -1);
    call.path = path;
    return leave(&call, fails ? fail() : syscall(SYS_mkdirat, AT_FDCWD, path, mode), NULL, 0);
}

/* What only reads is recorded too, so that it can be made to fail. */
ssize_t read(int descriptor, void *bytes, size_t length) {
    if (!is_tracked(descriptor)) return syscall(SYS_read, descriptor, bytes, length);
    struct call call;
    int fails = enter(&call, READ, descriptor);
    return leave(&call, fails ? fail() : syscall(SYS_read, descriptor, bytes, length), NULL, 0);
}

ssize_t pread64(int descriptor, void *bytes, size_t length, off64_t offset) {
    if (!is_tracked(descriptor)) return syscall(SYS_pread64, descriptor, bytes, length, offset);
    struct call call;
    int fails = enter(&call, READ, descriptor);
    return leave(&call, fails ? fail() : syscall(SYS_pread64, descriptor, bytes, length, offset), NULL, 0);
}

DIR *opendir(const char *path) {
    DIR *(*real)(const char *) = (DIR * (*)(const char *)) dlsym(RTLD_NEXT, "opendir");
    if (!is_below(path)) return real(path);
    struct call call;
    int fails = enter(&call, LIST, -1);
    call.path = path;
    DIR *opened = fails ? NULL : real(path);
    if (fails) fail();
    leave(&call, opened ? 0 : -1, NULL, 0);
    return opened;
}

/* Copies inside of the kernel are not seen: the caller falls back to reading and writing. */
ssize_t copy_file_range(int in, off64_t *from, int out, off64_t *to, size_t length, unsigned flags) {
    if (is_tracked(in) || is_tracked(out)) return errno = ENOSYS, -1;
    return syscall(SYS_copy_file_range, in, from, out, to, length, flags);
}

ssize_t sendfile64(int out, int in, off64_t *from, size_t length) {
    if (is_tracked(in) || is_tracked(out)) return errno = ENOSYS, -1;
    return syscall(SYS_sendfile, out, in, from, length);
}
