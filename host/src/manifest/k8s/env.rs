//! The variables of a container as written.

use serde::Deserialize;

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(in crate::manifest) struct Env {
    pub(in crate::manifest) name: Option<String>,
    pub(in crate::manifest) value: Option<String>,
    pub(in crate::manifest) value_from: Option<ValueFrom>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(in crate::manifest) struct ValueFrom {
    pub(in crate::manifest) config_map_key_ref: Option<KeyRef>,
    pub(in crate::manifest) secret_key_ref: Option<KeyRef>,
    pub(in crate::manifest) field_ref: Option<FieldRef>,
    pub(in crate::manifest) resource_field_ref: Option<ResourceFieldRef>,
    pub(in crate::manifest) file_key_ref: Option<FileKeyRef>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(in crate::manifest) struct FileKeyRef {
    pub(in crate::manifest) volume_name: Option<String>,
    pub(in crate::manifest) path: Option<String>,
    pub(in crate::manifest) key: Option<String>,
    pub(in crate::manifest) optional: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(in crate::manifest) struct KeyRef {
    pub(in crate::manifest) name: Option<String>,
    pub(in crate::manifest) key: Option<String>,
    pub(in crate::manifest) optional: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(in crate::manifest) struct FieldRef {
    pub(in crate::manifest) field_path: Option<String>,
    /// Only `v1` is accepted.
    #[serde(rename = "apiVersion")]
    _api_version: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(in crate::manifest) struct EnvFrom {
    pub(in crate::manifest) prefix: String,
    pub(in crate::manifest) config_map_ref: Option<ObjectRef>,
    pub(in crate::manifest) secret_ref: Option<ObjectRef>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(in crate::manifest) struct ObjectRef {
    pub(in crate::manifest) name: Option<String>,
    pub(in crate::manifest) optional: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(in crate::manifest) struct ResourceFieldRef {
    pub(in crate::manifest) container_name: Option<String>,
    pub(in crate::manifest) resource: Option<String>,
    pub(in crate::manifest) divisor: Option<String>,
}
