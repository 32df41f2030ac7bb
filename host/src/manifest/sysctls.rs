//! The manifest's kernel parameters.

use super::checks::Build;
use super::problem::quote;
use magikvm_proto::limits::MAX_SYSCTLS;
use magikvm_proto::sysctl::{Sysctl, SysctlError};
use std::collections::HashMap;

const PATH: &str = "spec.securityContext.sysctls";

impl Build<'_> {
    pub(super) fn sysctls(&mut self) -> Vec<Sysctl> {
        let written = &self.written.pod.spec.security_context.sysctls;
        self.count(PATH, written.len(), MAX_SYSCTLS);
        let mut seen = HashMap::new();
        let mut sysctls = Vec::new();
        for (index, one) in written.iter().enumerate().take(MAX_SYSCTLS) {
            let at = format!("{PATH}[{index}]");
            let (name_at, value_at) = (format!("{at}.name"), format!("{at}.value"));
            let name = self.required(&name_at, one.name.as_deref());
            let value = self.required(&value_at, one.value.as_deref());
            let (Some(name), Some(value)) = (name, value) else { continue };
            let sysctl = Sysctl { name: name.to_owned(), value: value.to_owned() };
            if let Err(error) = sysctl.check() {
                let field = match error {
                    SysctlError::LongValue | SysctlError::Control => &value_at,
                    _ => &name_at,
                };
                self.problem(field, format!("{} {error}", quote(name)), "");
            } else if self.written.pod.spec.host_network
                && sysctl.path().is_ok_and(|path| path.starts_with("net/"))
            {
                let message = format!("{} would change the network of the host", quote(name));
                self.problem(&name_at, message, "leave it out, or leave out hostNetwork");
            } else if let Some(first) = seen.insert(sysctl.path().ok(), index) {
                self.problem(&name_at, format!("{} is also {PATH}[{first}]", quote(name)), "");
            }
            sysctls.push(sysctl);
        }
        sysctls
    }
}

#[cfg(test)]
mod tests {
    use crate::manifest;

    fn parsed(sysctls: &str) -> Result<usize, String> {
        let text = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: web}}\nspec:\n  containers: [{{name: main, image: busybox}}]\n  securityContext:\n    sysctls:\n{sysctls}"
        );
        match manifest::parse(text.as_bytes(), "pod.yaml") {
            Ok(plan) => Ok(plan.sysctls.len()),
            Err(problems) => Err(problems.to_string()),
        }
    }

    #[test]
    fn parameters_of_the_whole_kernel_are_refused_with_their_line() {
        assert_eq!(parsed("    - {name: net.ipv4.ip_unprivileged_port_start, value: '1024'}\n"), Ok(1));
        for (sysctls, line, expected) in [
            ("    - {name: vm.swappiness, value: '1'}\n", 8, "does not belong to a pod"),
            (
                "    - {name: net.core.somaxconn, value: '1'}\n    - {name: kernel.panic, value: '1'}\n",
                9,
                "does not belong to a pod",
            ),
            ("    - {name: net/../kernel/panic, value: '1'}\n", 8, "is not the name of a kernel parameter"),
            (
                "    - {name: net.core.somaxconn, value: '1'}\n    - {name: net/core/somaxconn, value: '2'}\n",
                9,
                "is also spec.securityContext.sysctls[0]",
            ),
            ("    - {name: net.core.somaxconn}\n", 8, "value: is missing"),
        ] {
            let problems = parsed(sysctls).unwrap_err();
            assert!(
                problems.contains(expected) && problems.contains(&format!("pod.yaml:{line}:")),
                "{problems}"
            );
        }
    }
}
