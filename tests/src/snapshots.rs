//! Golden texts of the program's output, without the parts that differ from run to run.

use insta::Settings;

/// Patterns and their replacements, applied in this order.
const FILTERS: [(&str, &str); 12] = [
    (r"/[^ \n\x22']*magikvm-test-\w+/root", "[ROOT]"),
    (r"/[^ \n\x22']*magikvm-test-\w+/files", "[FILES]"),
    (r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", "[UID]"),
    (r"sha256:[0-9a-f]{64}", "[DIGEST]"),
    (r"\b[0-9a-f]{12}\b", "[SHORT DIGEST]"),
    (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z", "[NANOSECONDS]"),
    (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", "[TIME]"),
    (r#""pid":\d+"#, r#""pid":[PID]"#),
    (r#""start_time":\d+"#, r#""start_time":[TICKS]"#),
    // In the table of `ps`.
    (r"(Running|Pending|Paused|Succeeded|Failed|Lost)( +\d+/\d+ +\d+ +)\d+s +", "$1$2[AGE]   "),
    // In the table of `image ls`.
    (r"\d+s ago", "[AGE] ago"),
    (r"magikvm \d+\.\d+\.\d+\S*", "magikvm [VERSION]"),
];

/// Compares a text with the golden one of this name (in `tests/golden/`).
#[track_caller]
pub fn assert_golden(name: &str, text: &str) {
    let mut settings = Settings::clone_current();
    settings.set_snapshot_path(concat!(env!("CARGO_MANIFEST_DIR"), "/golden"));
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    for (pattern, replacement) in FILTERS {
        settings.add_filter(pattern, replacement);
    }
    settings.bind(|| insta::assert_snapshot!(name, text));
}
