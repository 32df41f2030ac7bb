//! Volumes and their mounts as written.

use super::{FieldRef, ResourceFieldRef};
use serde::Deserialize;

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(in crate::manifest) struct VolumeMount {
    pub(in crate::manifest) name: Option<String>,
    pub(in crate::manifest) mount_path: Option<String>,
    pub(in crate::manifest) sub_path: Option<String>,
    pub(in crate::manifest) sub_path_expr: Option<String>,
    pub(in crate::manifest) read_only: bool,
    pub(in crate::manifest) recursive_read_only: Option<String>,
    /// Only `None` is accepted.
    #[serde(rename = "mountPropagation")]
    _mount_propagation: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(in crate::manifest) struct Volume {
    pub(in crate::manifest) name: Option<String>,
    pub(in crate::manifest) host_path: Option<HostPath>,
    pub(in crate::manifest) empty_dir: Option<EmptyDir>,
    pub(in crate::manifest) config_map: Option<ObjectVolume>,
    pub(in crate::manifest) secret: Option<ObjectVolume>,
    pub(in crate::manifest) projected: Option<Projected>,
    #[serde(rename = "downwardAPI")]
    pub(in crate::manifest) downward_api: Option<DownwardApi>,
    pub(in crate::manifest) image: Option<ImageVolume>,
    pub(in crate::manifest) persistent_volume_claim: Option<ClaimVolume>,
    pub(in crate::manifest) ephemeral: Option<Ephemeral>,
}

impl Volume {
    /// Whether it is an emptyDir, which one without a source is.
    pub(in crate::manifest) fn is_empty_dir(&self) -> bool {
        let others = [
            self.host_path.is_some(),
            self.config_map.is_some(),
            self.secret.is_some(),
            self.projected.is_some(),
            self.downward_api.is_some(),
            self.image.is_some(),
            self.persistent_volume_claim.is_some(),
            self.ephemeral.is_some(),
        ];
        self.empty_dir.is_some() || !others.contains(&true)
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(in crate::manifest) struct HostPath {
    pub(in crate::manifest) path: Option<String>,
    #[serde(rename = "type")]
    pub(in crate::manifest) kind: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(in crate::manifest) struct EmptyDir {
    pub(in crate::manifest) medium: Option<String>,
    pub(in crate::manifest) size_limit: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(in crate::manifest) struct ObjectVolume {
    #[serde(alias = "secretName")]
    pub(in crate::manifest) name: Option<String>,
    pub(in crate::manifest) items: Vec<Item>,
    pub(in crate::manifest) default_mode: Option<i64>,
    pub(in crate::manifest) optional: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(in crate::manifest) struct Item {
    pub(in crate::manifest) key: Option<String>,
    pub(in crate::manifest) path: Option<String>,
    pub(in crate::manifest) mode: Option<i64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(in crate::manifest) struct Projected {
    pub(in crate::manifest) sources: Vec<ProjectedSource>,
    pub(in crate::manifest) default_mode: Option<i64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(in crate::manifest) struct ProjectedSource {
    pub(in crate::manifest) config_map: Option<ObjectVolume>,
    pub(in crate::manifest) secret: Option<ObjectVolume>,
    #[serde(rename = "downwardAPI")]
    pub(in crate::manifest) downward_api: Option<DownwardApi>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(in crate::manifest) struct DownwardApi {
    pub(in crate::manifest) items: Vec<DownwardItem>,
    pub(in crate::manifest) default_mode: Option<i64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(in crate::manifest) struct DownwardItem {
    pub(in crate::manifest) path: Option<String>,
    pub(in crate::manifest) mode: Option<i64>,
    pub(in crate::manifest) field_ref: Option<FieldRef>,
    pub(in crate::manifest) resource_field_ref: Option<ResourceFieldRef>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(in crate::manifest) struct ImageVolume {
    pub(in crate::manifest) reference: Option<String>,
    pub(in crate::manifest) pull_policy: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(in crate::manifest) struct ClaimVolume {
    pub(in crate::manifest) claim_name: Option<String>,
    pub(in crate::manifest) read_only: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(in crate::manifest) struct Ephemeral {
    pub(in crate::manifest) volume_claim_template: Option<ClaimTemplate>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(in crate::manifest) struct ClaimTemplate {
    pub(in crate::manifest) spec: Option<ClaimTemplateSpec>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(in crate::manifest) struct ClaimTemplateSpec {
    pub(in crate::manifest) access_modes: Vec<String>,
    pub(in crate::manifest) resources: ClaimResources,
    /// Only `Filesystem` is accepted.
    #[serde(rename = "volumeMode")]
    _volume_mode: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(in crate::manifest) struct ClaimResources {
    pub(in crate::manifest) requests: ClaimAmounts,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(in crate::manifest) struct ClaimAmounts {
    pub(in crate::manifest) storage: Option<String>,
}
