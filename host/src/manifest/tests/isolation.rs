//! Nothing that comes with an image changes how a pod is isolated: only the Pod's own annotations do, and all of them are in one table.

use super::*;
use crate::image::ImageDefaults;
use std::path::Path;

/// A value of each annotation that changes the plan of a pod that has none of them.
const VALUES: &[(&str, &str)] = &[
    (fields::ANNOTATION_MEMORY, "777"),
    (fields::ANNOTATION_VCPUS, "7"),
    (fields::ANNOTATION_NETWORK, "none"),
    (fields::ANNOTATION_EGRESS_ALLOW, "a.example"),
    (fields::ANNOTATION_EGRESS_REACH, "loopback,host,link-local,metadata"),
    (fields::ANNOTATION_CNI, "web"),
    (fields::ANNOTATION_NESTED, "true"),
    (fields::ANNOTATION_ROOT, "memory"),
    (fields::ANNOTATION_LIMITS, "best-effort"),
    (fields::ANNOTATION_LOG_MAX_SIZE, "1Mi"),
    (fields::ANNOTATION_LOG_MAX_FILES, "7"),
    (fields::ANNOTATION_LOG_MAX_POD_SIZE, "7Mi"),
    (fields::ANNOTATION_SERVICE_DIRECTORY, "main"),
];

/// Shown by `inspect`, and not read.
const WITHOUT_EFFECT: [&str; 3] =
    [fields::ANNOTATION_PORTS, fields::ANNOTATION_JAIL, fields::ANNOTATION_NAMESPACES];

fn sources(dir: &Path, found: &mut Vec<(String, String)>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            if path.file_name().is_some_and(|name| name != "tests" && name != "target") {
                sources(&path, found);
            }
        } else if path.extension().is_some_and(|end| end == "rs") && !path.ends_with("tests.rs") {
            found.push((path.display().to_string(), std::fs::read_to_string(&path).unwrap()));
        }
    }
}

#[test]
fn every_name_that_the_programs_know_is_in_the_table() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut files = Vec::new();
    for part in ["host/src", "crates", "guest/src"] {
        sources(&root.join(part), &mut files);
    }
    let fine = |c: char| c.is_ascii_alphanumeric() || c == '-';
    let mut seen = 0;
    for (path, text) in files {
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        for rest in code.split(fields::ANNOTATION_PREFIX).skip(1) {
            let name: String = rest.chars().take_while(|&c| fine(c)).collect();
            let name = format!("{}{name}", fields::ANNOTATION_PREFIX);
            let known = fields::ANNOTATIONS.iter().any(|(known, _)| *known == name);
            assert!(known || name == fields::ANNOTATION_PREFIX, "{path} names {name}");
            seen += 1;
        }
    }
    assert!(seen >= fields::ANNOTATIONS.len());
    for (name, _) in fields::ANNOTATIONS {
        let tried = VALUES.iter().any(|(tried, _)| tried == name);
        assert!(tried || WITHOUT_EFFECT.contains(name), "{name} is not tried");
    }
}

#[test]
fn an_annotation_of_the_pod_has_its_effect_and_a_label_of_an_image_has_none() {
    // Networks of CNI are for one class only.
    let in_namespaces = SMALL.replace("spec:\n", "spec:\n  runtimeClassName: pod-containers\n");
    let plain = plan(SMALL);
    // The process is all that an image decides of a container's configuration.
    let process =
        |image: &ImageDefaults| resolve_process(&plain.containers[0], image, &PodFacts::default()).unwrap();
    let without = serde_json::json!({ "Cmd": ["/a"], "Env": ["A=b"] });
    let expected = process(&serde_json::from_value(without.clone()).unwrap());
    for (name, value) in VALUES {
        let text = if *name == fields::ANNOTATION_CNI { in_namespaces.as_str() } else { SMALL };
        let plain = plan(text);
        let annotated =
            text.replace("  name: web", &format!("  name: web\n  annotations: {{{name}: '{value}'}}"));
        let mut with = plan(&annotated);
        with.annotations.clear();
        with.manifest = plain.manifest.clone();
        assert_ne!(with, plain, "{name} has no effect, so that it proves nothing of images");
        // What an image can say of itself, by the same name.
        let mut image = without.clone();
        image["Labels"] = serde_json::json!({ *name: value });
        image["Annotations"] = serde_json::json!({ *name: value });
        image[*name] = serde_json::json!(value);
        let image: ImageDefaults = serde_json::from_value(image).unwrap();
        assert_eq!(process(&image), expected, "{name}");
    }
}
