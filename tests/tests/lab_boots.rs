//! One pod in one fresh lab, without a repetition and (as in all labs) without a second boot of the pod's VM. `ci/lab.sh --count N` runs this test N times and counts
//! how it ends.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use magikvm_lab::inside;
use magikvm_tests::Pod;
use magikvm_tests::virtual_machine::{Driver, VmHost};

#[test]
fn the_first_vm_of_a_fresh_lab_runs_its_pod() {
    inside!(|| {
        let host = VmHost::with(Driver::Krun);
        let pod = Pod::new("first").script("web", "echo here");
        let run = host.run(&pod).arg("--rm").run();
        println!("the run took {:?}", run.took);
        let text = run.transcript();
        assert_eq!((run.code, run.stdout.contains("here")), (0, true), "{text}");
    });
}
