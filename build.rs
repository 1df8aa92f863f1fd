//! Nothing is generated here: the contract's Rust code is made by `crates/contract`.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
}
