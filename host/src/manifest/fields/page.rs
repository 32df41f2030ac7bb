//! The table as a page of documentation, `docs/fields.md`.

use super::{ALIASES, ANNOTATIONS, EXTENDED, Status, all};

/// Handling of the other documents of a file.
const OBJECTS: &str = "\n## ConfigMaps and Secrets\n\nFurther documents of the same input ([manifests.md](manifests.md)), in any order: v1, with `metadata.name`. A ConfigMap \
     has `data` (strings) and `binaryData` (base64), a Secret `data` (base64), `stringData` (strings, which win) and `type`; both may have `immutable`. \
     The data of one is at most 1 MiB together. In `metadata` only `name` and `namespace` count, and the namespace must be the Pod's.\n";

/// The table as a page of documentation.
pub fn markdown() -> String {
    let mut page = String::from(
        "# Fields of a Pod\n\n\
         Generated from the table in `host/src/manifest/fields.rs`, which the check of a manifest uses too.\n\
         A field that is in none of these lists is refused, so nothing in a manifest is ever silently dropped.\n\n\
         ## Supported\n\n| Field | Value | What it does |\n|---|---|---|\n",
    );
    for field in all().filter(|field| field.status == Status::Supported) {
        page += &format!("| `{}` | {} | {} |\n", field.path, field.shape.describe(), field.about);
    }
    page += "\nThe fields of these objects are those of another one:";
    for (alias, of) in ALIASES {
        page += &format!(" `{alias}` has those of `{of}`;");
    }
    page.pop();
    page += ".\n";
    page += "\n## Accepted with one value\n\n| Field | Value | Why no other |\n|---|---|---|\n";
    for field in all() {
        if let Status::Only { values, why } = field.status {
            page += &format!("| `{}` | `{}` | {why} |\n", field.path, values.join("`, `"));
        }
    }
    page += "\n## Ignored\n\n`run` counts such fields in a warning, and `-v` lists them with their reasons, unless their value is the default of an API server. What stands in them is not checked.\n\n| Field | Default | Why that is safe |\n|---|---|---|\n";
    for field in all() {
        if let Status::Ignored { why, defaults } = field.status {
            let values: Vec<String> = defaults.iter().map(|value| format!("`{value}`")).collect();
            page += &format!("| `{}` | {} | {why} |\n", field.path, values.join(", "));
        }
    }
    page += "\nVolumes that an admission controller adds for the token of a service account, and their mounts, are ignored in the same way: \
             projected ones named `kube-api-access-…`, `aws-iam-token…`, `eks-pod-identity-token…` and `azure-identity-token…`, \
             and secrets named `…-token-…` that are mounted at `/var/run/secrets/kubernetes.io/serviceaccount` and not in the file.\n";
    page += "\n## Refused\n\nAn empty value (`null`, `\"\"`, `[]`, `{}`, a resource of 0) asks for nothing and is accepted, except for a source.\n\n| Field | Why |\n|---|---|\n";
    for field in all() {
        if let Status::Refused { why, .. } = field.status {
            page += &format!("| `{}` | {why} |\n", field.path);
        }
    }
    page += &format!("| `spec.containers[].resources.*.DOMAIN/NAME` | {EXTENDED} |\n");
    page += OBJECTS;
    page += "\n## Annotations\n\nUnknown annotations that begin with `magikvm.dev/` are refused, all others are kept.\n\n| Annotation | What it does |\n|---|---|\n";
    for (name, about) in ANNOTATIONS {
        page += &format!("| `{name}` | {about} |\n");
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn the_documentation_is_the_table() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/fields.md");
        if std::env::var_os("MAGIKVM_BLESS").is_some() {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, markdown()).unwrap();
        }
        let page = std::fs::read_to_string(&path).unwrap_or_default();
        assert_eq!(page, markdown(), "docs/fields.md is not current: run the test with MAGIKVM_BLESS=1");
    }
}
