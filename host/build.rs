//! Sets `has_krun` where libkrun exists. The feature `krun` can be on anywhere, so that one command builds on every system.

fn main() {
    println!("cargo::rustc-check-cfg=cfg(has_krun)");
    let set = |name: &str| std::env::var_os(name).is_some();
    let target = |name: &str| std::env::var(format!("CARGO_CFG_TARGET_{name}")).unwrap_or_default();
    let (os, arch) = (target("OS"), target("ARCH"));
    let compiled_in = match os.as_str() {
        "linux" => ["x86_64", "aarch64"].contains(&arch.as_str()),
        "macos" => arch == "aarch64",
        _ => false,
    };
    if set("CARGO_FEATURE_SYSTEM_LIBKRUN") || (set("CARGO_FEATURE_KRUN") && compiled_in) {
        println!("cargo::rustc-cfg=has_krun");
    }
}
