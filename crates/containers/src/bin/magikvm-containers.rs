//! The sandbox of a pod in namespaces (see `magikvm_containers::sandbox`).

fn main() -> std::process::ExitCode {
    magikvm_containers::sandbox::main()
}
