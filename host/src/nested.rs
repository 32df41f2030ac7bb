//! Whether a guest may make VMs itself. The processor's extension for that is hidden from guests unless the pod asks for it: the host's code
//! behind it is large, and has let guests out.

use std::fs;

/// What the guest sees of the processor's extension for VMs (VMX, SVM).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Nested {
    #[default]
    Masked,
    Exposed,
}

/// Settings of the host's kernel modules, which say whether guests can have the extension.
const SETTINGS: [&str; 2] =
    ["/sys/module/kvm_intel/parameters/nested", "/sys/module/kvm_amd/parameters/nested"];

/// Whether the host's KVM can give a guest the extension.
pub fn is_offered() -> bool {
    SETTINGS.iter().any(|path| fs::read_to_string(path).is_ok_and(|text| says_yes(&text)))
}

fn says_yes(text: &str) -> bool {
    matches!(text.trim(), "1" | "Y" | "y")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_of_both_modules_are_understood() {
        assert!(says_yes("Y\n") && says_yes("1\n"));
        assert!(!says_yes("N\n") && !says_yes("0\n") && !says_yes(""));
    }
}
