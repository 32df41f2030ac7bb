//! `magikvm volume`: volumes that survive their pods.

use super::error::{CliError, Kind};
use super::labels::Selector;
use super::output::{self, Shape};
use super::ps::How;
use super::select::Filter;
use super::{Format, Outcome, pod_id, print_as, ui};
use crate::pod::interface::PodRuntimeInterface;
use crate::pod::status;
use crate::store::atomic::Staged;
use crate::store::text::chain;
use crate::vmm::lasting;
use crate::volume::claims::{ClaimError, ClaimRecord, Claims, FoundClaim, Terms};
use crate::volume::{AccessMode, ClaimForm};
use magikvm_proto::id::{Namespace, PodId, PodName};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// List volumes
    Ls(LsArgs),
    /// Show volumes as Kubernetes objects
    Inspect {
        /// Volumes, as NAME or NAMESPACE/NAME
        #[arg(required = true, value_name = "VOLUME", value_parser = pod_id)]
        volumes: Vec<PodId>,
        /// Output format
        #[arg(short, long, default_value = "json")]
        output: Format,
    },
    /// Remove volumes with their content
    Rm {
        /// Volumes, as NAME or NAMESPACE/NAME
        #[arg(required = true, value_name = "VOLUME", value_parser = pod_id)]
        volumes: Vec<PodId>,
    },
    /// Remove volumes that no pod names
    Prune {
        /// Print what would be removed, but remove nothing
        #[arg(long)]
        dry_run: bool,
        /// Do not ask
        #[arg(short, long)]
        force: bool,
        /// Only volumes with these labels, as in `ls`
        #[arg(short = 'l', long, value_name = "SELECTOR")]
        selector: Option<Selector>,
    },
    /// Write the content of a volume to a file
    Export {
        /// Volume, as NAME or NAMESPACE/NAME
        #[arg(value_name = "VOLUME", value_parser = pod_id)]
        volume: PodId,
        /// Archive to write; - for standard output
        #[arg(short, long, value_name = "FILE", default_value = "-")]
        output: PathBuf,
        /// Write a disk as it is, as a sparse file, instead of an archive of files
        #[arg(long, requires = "output")]
        disk: bool,
    },
    /// Make a volume with the content of a file
    Import(ImportArgs),
}

#[derive(Debug, clap::Args)]
struct LsArgs {
    /// Output format
    #[arg(short, long)]
    output: Option<Format>,
    /// Print only the names
    #[arg(short, long, conflicts_with = "output")]
    quiet: bool,
    /// Only volumes with these labels: KEY=VALUE, KEY!=VALUE, KEY in (A,B), KEY notin (A,B), KEY, !KEY, separated by commas
    #[arg(short = 'l', long, value_name = "SELECTOR")]
    selector: Option<Selector>,
}

#[derive(Debug, clap::Args)]
struct ImportArgs {
    /// New volume, as NAME or NAMESPACE/NAME
    #[arg(value_name = "VOLUME", value_parser = pod_id)]
    volume: PodId,
    /// Archive to read, not compressed; - for standard input
    #[arg(value_name = "FILE", default_value = "-")]
    archive: PathBuf,
    /// Access mode of the volume: ReadWriteOnce, ReadOnlyMany, ReadWriteMany or ReadWriteOncePod
    #[arg(long = "access-mode", value_name = "MODE", value_parser = access_mode, default_value = "ReadWriteOnce")]
    access_modes: Vec<AccessMode>,
    /// Read a disk that `export --disk` has written
    #[arg(long)]
    disk: bool,
}

fn access_mode(text: &str) -> Result<AccessMode, String> {
    let found = AccessMode::ALL.into_iter().find(|(name, _)| *name == text);
    found.map(|(_, mode)| mode).ok_or_else(|| {
        let names: Vec<&str> = AccessMode::ALL.iter().map(|(name, _)| *name).collect();
        format!("it is one of {}", names.join(", "))
    })
}

impl From<ClaimError> for CliError {
    fn from(error: ClaimError) -> Self {
        let kind = if error.is_of_host() { Kind::Environment } else { Kind::User };
        let plain = Self::of(kind, &error);
        match error.hint() {
            Some(hint) => plain.hint(hint),
            None => plain,
        }
    }
}

pub(super) fn main(args: Args, pods: &PodRuntimeInterface) -> Outcome {
    let dir = pods.layout().volumes();
    let claims = Claims::at(&dir);
    match args.verb {
        Verb::Ls(args) => list(claims, &args),
        Verb::Inspect { volumes, output } => inspect(claims, &volumes, output),
        Verb::Rm { volumes } => {
            let mut worst = ExitCode::SUCCESS;
            for id in &volumes {
                match claims.remove(id) {
                    Ok(()) => ui::line(&format!("removed {id}")),
                    Err(error) => worst = CliError::from(error).report(),
                }
            }
            Ok(worst)
        }
        Verb::Prune { dry_run, force, selector } => {
            let how = if dry_run {
                Pruning::Tell
            } else if force {
                Pruning::Remove
            } else {
                Pruning::Ask
            };
            prune(claims, how, selector.as_ref(), pods)
        }
        Verb::Export { volume, output, disk: true } => export_disk(claims, &volume, &output),
        Verb::Export { volume, output, disk: false } => export(claims, &volume, &output),
        Verb::Import(args) => import(claims, &args),
    }
}

/// The claims that can be read. The others are said.
fn found(claims: Claims<'_>) -> Result<Vec<FoundClaim>, CliError> {
    let (found, damage) = claims.list()?;
    for error in &damage {
        ui::warn(&chain(error));
    }
    Ok(found)
}

fn list(claims: Claims<'_>, args: &LsArgs) -> Outcome {
    let mut found = found(claims)?;
    found.retain(|claim| fits(claim, args.selector.as_ref()));
    if let Some(format) = args.output {
        let items: Vec<Value> = found.iter().map(object).collect();
        print_as(&json!({ "apiVersion": "v1", "kind": "List", "items": items }), format)?;
        return Ok(ExitCode::SUCCESS);
    }
    if args.quiet {
        let names: String = found.iter().map(|claim| format!("{}\n", claim.record.id)).collect();
        ui::bytes(names.as_bytes());
        return Ok(ExitCode::SUCCESS);
    }
    table(&found, true);
    Ok(ExitCode::SUCCESS)
}

/// `magikvm get volumes`: the named volumes, or those that fit.
pub(super) fn get(ids: &[PodId], filter: &Filter, how: &How, pods: &PodRuntimeInterface) -> Outcome {
    let dir = pods.layout().volumes();
    let claims = Claims::at(&dir);
    let (mut chosen, mut worst) = (Vec::new(), ExitCode::SUCCESS);
    for id in ids {
        match claims.find(id) {
            Ok(claim) => chosen.push(claim),
            Err(error) => worst = CliError::from(error).report(),
        }
    }
    if ids.is_empty() {
        let is_of = |claim: &FoundClaim| {
            let namespace = filter.namespace.as_ref();
            namespace.is_none_or(|namespace| claim.record.id.namespace == *namespace)
        };
        chosen = found(claims)?;
        chosen.retain(|claim| is_of(claim) && fits(claim, filter.selector.as_ref()));
    }
    chosen = how.sorted(chosen, |claim| Ok(object(claim)))?;
    if let Some(output) = &how.output {
        let items = chosen.iter().map(object).collect();
        let shape = if ids.len() == 1 { Shape::One } else { Shape::List("PersistentVolumeClaimList") };
        if output::print(items, shape, output, !how.no_headers)? {
            return Ok(worst);
        }
    }
    match (chosen.is_empty(), ids.is_empty()) {
        (true, true) => super::get::nothing(filter),
        (true, false) => {}
        (false, _) => table(&chosen, !how.no_headers),
    }
    Ok(worst)
}

fn table(found: &[FoundClaim], has_heads: bool) {
    let now = crate::store::record::now_ms();
    let heads = ["NAMESPACE", "NAME", "TYPE", "ACCESS MODES", "SIZE", "USED", "USED BY", "AGE"];
    let mut rows: Vec<Vec<String>> = Vec::new();
    if has_heads {
        rows.push(heads.map(str::to_owned).to_vec());
    }
    rows.extend(found.iter().map(|claim| {
        let record = &claim.record;
        vec![
            record.id.namespace.to_string(),
            record.id.name.to_string(),
            record.form.as_str().to_owned(),
            modes(&record.access_modes).join(","),
            size(record).map_or_else(|| "-".to_owned(), ui::size),
            claim.used_bytes().map_or_else(|| "-".to_owned(), ui::size),
            if claim.users.is_empty() { "-".to_owned() } else { names(&claim.users).join(",") },
            ui::age(now.saturating_sub(record.created_ms)),
        ]
    }));
    ui::table(&rows);
}

/// What it can hold, if that is limited.
fn size(record: &ClaimRecord) -> Option<u64> {
    record.storage_bytes.filter(|_| record.form == ClaimForm::Disk)
}

fn fits(claim: &FoundClaim, selector: Option<&Selector>) -> bool {
    selector.is_none_or(|selector| selector.fits(Some(&json!(claim.record.labels))))
}

fn modes(modes: &[AccessMode]) -> Vec<&'static str> {
    modes.iter().map(|mode| mode.as_str()).collect()
}

fn names(users: &[PodId]) -> Vec<String> {
    users.iter().map(ToString::to_string).collect()
}

/// A claim as a Kubernetes object.
fn object(claim: &FoundClaim) -> Value {
    let record = &claim.record;
    let modes = modes(&record.access_modes);
    let mut spec = json!({ "accessModes": modes, "volumeMode": "Filesystem" });
    if let Some(bytes) = record.storage_bytes {
        spec["resources"] = json!({ "requests": { "storage": bytes.to_string() } });
    }
    let mut metadata = json!({
        "name": record.id.name,
        "namespace": record.id.namespace,
        "uid": record.uid,
        "creationTimestamp": status::time(record.created_ms),
    });
    if !record.labels.is_empty() {
        metadata["labels"] = json!(record.labels);
    }
    // All but the first three are not in Kubernetes' type.
    let mut status = json!({
        "phase": "Bound",
        "accessModes": modes,
        "type": record.form.as_str(),
        "path": claim.path(),
        "usedBy": names(&claim.users),
    });
    if let (Some(used), Some(bytes)) = (claim.used_bytes(), size(record)) {
        status["capacity"] = json!({ "storage": bytes.to_string() });
        status["usedBytes"] = json!(used);
    }
    json!({
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": metadata,
        "spec": spec,
        "status": status,
    })
}

fn inspect(claims: Claims<'_>, volumes: &[PodId], format: Format) -> Outcome {
    let (mut values, mut worst) = (Vec::new(), ExitCode::SUCCESS);
    for id in volumes {
        match claims.find(id) {
            Ok(claim) => values.push(object(&claim)),
            Err(error) => worst = CliError::from(error).report(),
        }
    }
    print_as(&values.into(), format)?;
    Ok(worst)
}

/// Claims that the manifests of pods name, whether the pods run or have ended. What a pod names that is being started or is damaged is
/// not known.
fn named(pods: &PodRuntimeInterface) -> Result<BTreeSet<PodId>, CliError> {
    let mut named = BTreeSet::new();
    for found in pods.list()? {
        let Some(record) = found.record else {
            let message =
                format!("nobody knows yet which volumes the pod in {} uses", found.dir.path().display());
            let hint = "Prune again when `magikvm ps` shows it as running, or remove it.";
            return Err(CliError::new(Kind::User, message).hint(hint));
        };
        let namespace: &Namespace = &record.id.namespace;
        for volume in record.manifest["spec"]["volumes"].as_array().into_iter().flatten() {
            let name = volume["persistentVolumeClaim"]["claimName"].as_str();
            let name = name.and_then(|name| name.parse::<PodName>().ok());
            named.extend(name.map(|name| PodId { namespace: namespace.clone(), name }));
        }
    }
    Ok(named)
}

/// What becomes of volumes that nobody uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pruning {
    Tell,
    Ask,
    Remove,
}

fn prune(
    claims: Claims<'_>,
    how: Pruning,
    selector: Option<&Selector>,
    pods: &PodRuntimeInterface,
) -> Outcome {
    // Listed first: a pod that begins to use one of these is in the list of pods, or its use keeps the claim.
    let idle = || -> Result<Vec<FoundClaim>, CliError> {
        let (mut idle, named) = (found(claims)?, named(pods)?);
        idle.retain(|claim| {
            claim.users.is_empty() && !named.contains(&claim.record.id) && fits(claim, selector)
        });
        Ok(idle)
    };
    let mut chosen = idle()?;
    let mut worst = ExitCode::SUCCESS;
    if how == Pruning::Ask && !chosen.is_empty() {
        let ids: Vec<String> = chosen.iter().map(|claim| claim.record.id.to_string()).collect();
        let what = ui::count(chosen.len(), "volume");
        match ui::ask(&format!("Remove {what} with everything in them: {}?", ids.join(", "))) {
            // A pod may have run meanwhile that names one, and another one may have its name.
            Some(true) => {
                let now = idle()?;
                chosen.retain(|claim| now.iter().any(|other| other.record.guid() == claim.record.guid()));
            }
            Some(false) => {
                ui::note("Nothing was removed.");
                return Ok(ExitCode::SUCCESS);
            }
            None => {
                let message = format!("{what} with everything in them would be removed: {}", ids.join(", "));
                return Err(CliError::new(Kind::Code(2), message)
                    .hint("Use `--force` to remove them, or `--dry-run` to look only."));
            }
        }
    }
    for claim in &chosen {
        let id = &claim.record.id;
        if how == Pruning::Tell {
            ui::line(&format!("would remove {id}"));
            continue;
        }
        match claims.remove(id) {
            Ok(()) => ui::line(&format!("removed {id}")),
            // Somebody else was faster.
            Err(ClaimError::Missing(_) | ClaimError::InUse { .. } | ClaimError::Exported(_)) => {}
            Err(error) => worst = CliError::from(error).report(),
        }
    }
    Ok(worst)
}

fn export(claims: Claims<'_>, id: &PodId, to: &Path) -> Outcome {
    if to == Path::new("-") {
        let out = io::stdout();
        if out.is_terminal() {
            let message = "an archive is not written to a terminal";
            let hint = format!("write it to a file with `magikvm volume export {id} -o {}.tar`.", id.name);
            return Err(CliError::new(Kind::User, message).hint(hint));
        }
        let mut left_out = ui::LeftOut::default();
        claims.export(id, io::BufWriter::new(out.lock()), &mut |error| left_out.tell(&chain(error)))?;
        return Ok(left_out.code());
    }
    let mut staged = Staged::new(to).map_err(|error| CliError::of(Kind::Environment, &error))?;
    let mut left_out = ui::LeftOut::default();
    claims.export(id, io::BufWriter::new(staged.file()), &mut |error| left_out.tell(&chain(error)))?;
    staged.commit(0o600).map_err(|error| CliError::of(Kind::Environment, &error))?;
    ui::line(&to.display().to_string());
    Ok(left_out.code())
}

/// Writes a disk, with holes, so that no pipe can take it.
fn export_disk(claims: Claims<'_>, id: &PodId, to: &Path) -> Outcome {
    if to == Path::new("-") {
        let hint = format!("Name a file, as in `magikvm volume export --disk {id} -o {}.img`.", id.name);
        return Err(CliError::new(Kind::User, "a disk is written to a file only").hint(hint));
    }
    let failed = |error| CliError::of(Kind::Environment, &error);
    let mut staged = Staged::new(to).map_err(failed)?;
    claims.export_disk(id, staged.file())?;
    staged.commit(0o600).map_err(failed)?;
    ui::line(&to.display().to_string());
    Ok(ExitCode::SUCCESS)
}

fn import_disk(claims: Claims<'_>, args: &ImportArgs, access_modes: Vec<AccessMode>) -> Outcome {
    let path = &args.archive;
    let opened = crate::store::regular::open(path, crate::store::regular::Access::Read);
    let file = opened.map_err(|error| CliError::of(Kind::User, &error))?;
    let Some(bytes) = lasting::capacity(&file) else {
        let message = format!("{} is not a disk of a volume", path.display());
        return Err(CliError::new(Kind::User, message).hint(
            "Import what `magikvm volume export --disk` has written, or an archive without `--disk`.",
        ));
    };
    let shared = [AccessMode::ReadOnlyMany, AccessMode::ReadWriteMany];
    if let Some(mode) = access_modes.iter().find(|mode| shared.contains(mode)) {
        let message = format!("a disk is for one pod at a time, which {} is not", mode.as_str());
        return Err(CliError::new(Kind::User, message));
    }
    let terms = Terms { access_modes, storage_bytes: Some(bytes), form: ClaimForm::Disk, ..Terms::default() };
    claims.import_disk(&args.volume, &terms, &file)?;
    ui::line(&args.volume.to_string());
    Ok(ExitCode::SUCCESS)
}

fn import(claims: Claims<'_>, args: &ImportArgs) -> Outcome {
    let mut access_modes = args.access_modes.clone();
    access_modes.sort_unstable();
    access_modes.dedup();
    if access_modes.len() > 1 && access_modes.contains(&AccessMode::ReadWriteOncePod) {
        return Err(CliError::new(Kind::User, "ReadWriteOncePod can't be beside another access mode"));
    }
    if args.disk {
        return import_disk(claims, args, access_modes);
    }
    let terms = Terms { access_modes, ..Terms::default() };
    if args.archive == Path::new("-") {
        claims.import(&args.volume, &terms, io::BufReader::new(io::stdin().lock()))?;
    } else {
        let path = &args.archive;
        let file = File::open(path)
            .map_err(crate::store::atomic::FileError::at("open", path))
            .map_err(|error| CliError::of(Kind::User, &error))?;
        claims.import(&args.volume, &terms, io::BufReader::new(file))?;
    }
    ui::line(&args.volume.to_string());
    Ok(ExitCode::SUCCESS)
}
