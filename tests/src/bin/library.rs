//! A program that uses the library, for its test and for docs/library.md: runs the Pod of a manifest, tells its namespaces, signals its containers,
//! stops and deletes it.
//! Usage: library ROOT MANIFEST

use magikvm::PodRuntimeInterface;
use magikvm::manifest::input::{Accepts, Source, read};
use magikvm::pod::interface::Force;
use magikvm::pod::run::RunRequest;
use magikvm::store::layout::{Layout, Surroundings};
use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

fn main() -> ExitCode {
    // The monitor of a pod and its other processes are this program, too.
    if let Some(code) = magikvm::become_pod_process() {
        return code;
    }
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("library: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let args: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [root, manifest] = args.as_slice() else { return Err("usage: library ROOT MANIFEST".into()) };
    let source = Source {
        origin: manifest.display().to_string(),
        bytes: std::fs::read(manifest)?,
        accepts: Accepts::Everything,
    };
    let mut read = read(&[source], &mut |_, _| None).into_manifests().map_err(|all| all.to_string())?;
    let plan = read.pods.pop().ok_or("the manifest has no Pod")?.plan;

    let layout = Layout::new(&Surroundings::of_process(Some(root.clone())))?;
    let pods = PodRuntimeInterface::new(layout);
    let id = plan.id.clone();
    let mut request = RunRequest::new(plan, pods.layout().guest_image());
    request.root = Some(root.clone());
    pods.check_limits(&request).map_err(|failure| failure.message)?;
    // All containers run after this, or nothing of the pod is left.
    let mut launched = pods.run_pod(&request).map_err(|failure| failure.message)?;
    let started = launched.await_ready(&mut |_| ());
    started
        .map_err(|failure| failure.map_or_else(|| "the monitor has ended".to_owned(), |why| why.message))?;

    let found = pods.find(&id)?;
    let spaces = found.namespaces().ok_or("the pod has no namespaces")?;
    println!("network {}", spaces.network.display());
    pods.signal(&found, &id, None, 15)?;
    pods.stop_pod(&id, Some(Duration::from_secs(5)))?;
    pods.delete_pod(&id, Force::No)?;
    Ok(())
}
