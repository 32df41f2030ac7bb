//! Figures of what surrounds the VM, printed beside peers measured in the same run. `ci/bench.sh io` calls it. Never a test: machines are noisy.

mod files;

use magikvm_tests::bench::{Bench, Result};

fn main() -> Result<()> {
    let work = tempfile::tempdir()?;
    let bench = Bench::new(work.path())?;
    files::measure(&bench)
}
