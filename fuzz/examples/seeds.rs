//! Writes the seeds of all fuzz targets, in the repository's root:
//! cargo +nightly run --manifest-path fuzz/Cargo.toml --example seeds -- fuzz/corpus
//!
//! The seeds are committed, so that this only runs when the input format of a target changes.

use magikvm_images::{RootfsCompression, build_in_memory};
use magikvm_proto::codec::write_message;
use magikvm_proto::wire::{ExitStatus, Request, StreamMessage, UrgentMessage, WindowSize};
use std::error::Error;
use std::fs;
use std::path::Path;

const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

/// One entry of a tar stream.
fn entry(kind: u8, name: &str, link: &str, data: &[u8]) -> Vec<u8> {
    let mut block = vec![0; 512];
    let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, name.as_bytes());
    put(100, b"0004755\0");
    put(108, b"0001750\0");
    put(116, b"0000012\0");
    put(124, format!("{:011o}\0", data.len()).as_bytes());
    put(136, b"14371573000\0");
    put(148, b"        ");
    put(156, &[kind]);
    put(157, link.as_bytes());
    put(257, b"ustar\x0000");
    put(329, b"0000001\0");
    put(337, b"0000003\0");
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block.extend(data);
    block.resize(block.len().next_multiple_of(512), 0);
    block
}

fn pax(records: &[(&str, &[u8])]) -> Vec<u8> {
    let record = |(key, value): &(&str, &[u8])| {
        let body = [b" ", key.as_bytes(), b"=", value, b"\n"].concat();
        let length =
            (1..4).map(|digits| body.len() + digits).find(|len| len.to_string().len() + body.len() == *len);
        [length.unwrap_or(0).to_string().as_bytes(), &body].concat()
    };
    entry(b'x', "pax", "", &records.iter().flat_map(record).collect::<Vec<u8>>())
}

/// Streams with everything that the reader supports.
fn tars() -> Vec<(&'static str, Vec<u8>)> {
    let text: Vec<u8> = (0..700u32).flat_map(|n| format!("line {n}\n").into_bytes()).collect();
    let file = |name: &str, data: &[u8]| entry(b'0', name, "", data);
    let attributes = pax(&[
        ("path", b"a-name-of-pax"),
        ("mtime", b"1234567890.5"),
        ("uid", b"70000"),
        ("SCHILY.xattr.user.k", b"value"),
        ("SCHILY.xattr.security.capability", &[1; 20]),
    ]);
    let sparse = pax(&[
        ("GNU.sparse.major", b"1"),
        ("GNU.sparse.minor", b"0"),
        ("GNU.sparse.name", b"sparse"),
        ("GNU.sparse.realsize", b"20000"),
    ]);
    let mut map = b"2\n0\n4\n10000\n4\n".to_vec();
    map.resize(512, 0);
    map.extend(b"headmiddle"[..8].iter());
    vec![
        (
            "files",
            [file("a/b", b"x"), file("text", &text), file("zeros", &[0; 4500]), file("empty", b"")].concat(),
        ),
        (
            "links",
            [
                file("f", b"f"),
                entry(b'1', "d/hard", "f", b""),
                entry(b'2', "s", "d", b""),
                file("s/below", b"2"),
            ]
            .concat(),
        ),
        (
            "kinds",
            [
                entry(b'5', "./", "", b""),
                entry(b'3', "null", "", b""),
                entry(b'4', "disk", "", b""),
                entry(b'6', "pipe", "", b""),
            ]
            .concat(),
        ),
        (
            "whiteouts",
            [file(".wh.text", b""), file("a/.wh..wh..opq", b""), file("a/c", &text[..4200])].concat(),
        ),
        ("pax", [attributes, file("short", &text[..4100])].concat()),
        ("sparse", [sparse, entry(b'0', "x", "", &map)].concat()),
        (
            "long-name",
            [
                entry(b'L', "l", "", &[b'n'; 150]),
                entry(b'K', "k", "", &[b't'; 150]),
                entry(b'2', "x", "y", b""),
            ]
            .concat(),
        ),
        ("global", [entry(b'g', "g", "", b"11 a=bcdef\n"), file("after", b"1"), vec![0; 1024]].concat()),
        ("signed-owners", [pax(&[("uid", b"-2"), ("gid", b"4294967294")]), file("nobody", b"")].concat()),
    ]
}

fn references() -> Vec<String> {
    let digested = format!("registry.example:5000/team/app:1.2@{DIGEST}");
    [
        "busybox",
        "busybox:1",
        "team/app",
        "localhost/x",
        "registry.example:5000/a/b-c__d:v1.0",
        "[::1]:80/x:y",
        &digested,
        DIGEST,
    ]
    .map(str::to_owned)
    .to_vec()
}

fn documents() -> Vec<(&'static str, String)> {
    let blob = |media_type: &str| {
        format!(r#"{{"mediaType":"application/vnd.oci.image.{media_type}","digest":"{DIGEST}","size":5}}"#)
    };
    let platform = r#","platform":{"os":"linux","architecture":"amd64"}}"#;
    let index = |of: &str| {
        let entry = blob(of).replace(r#""size":5}"#, &format!(r#""size":5{platform}"#));
        format!(r#"{{"schemaVersion":2,"manifests":[{entry}]}}"#)
    };
    let manifest = format!(
        r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{},"layers":[{}]}}"#,
        blob("config.v1+json"),
        blob("layer.v1.tar+gzip")
    );
    let config = format!(
        r#"{{"architecture":"amd64","os":"linux","created":"2024-01-01T00:00:00Z","config":{{"Env":["A=b"],"Cmd":["sh"],"Entrypoint":null,"User":"1:2","ExposedPorts":{{"80/tcp":{{}}}},"Labels":{{"a":"b"}}}},"rootfs":{{"type":"layers","diff_ids":["{DIGEST}"]}}}}"#
    );
    let archive = r#"[{"Config":"c.json","RepoTags":["a:b"],"Layers":["l/layer.tar"]}]"#.to_owned();
    vec![
        ("manifest", format!("{manifest}\0{config}")),
        ("index", format!("{}\0{manifest}\0{config}", index("manifest.v1+json"))),
        (
            "nested",
            format!("{}\0{}\0{manifest}\0{config}", index("index.v1+json"), index("manifest.v1+json")),
        ),
        ("archive", archive),
        ("wrong", format!("{config}\0{manifest}")),
    ]
}

fn wires() -> Result<Vec<(&'static str, Vec<u8>)>, Box<dyn Error>> {
    let mut requests = Vec::new();
    let requested: [Request; 5] = [
        Request::Hello { generation: 4 },
        Request::Ping,
        Request::Status,
        Request::Events { since: 7 },
        Request::Clock { realtime_ns: 1_767_225_600_123_456_789 },
    ];
    for request in &requested {
        write_message(&mut requests, request)?;
    }
    let mut messages = Vec::new();
    write_message(&mut messages, &StreamMessage::Dropped { channel: 1, bytes: 12 })?;
    write_message(&mut messages, &StreamMessage::Exit(ExitStatus::signaled(9)))?;
    let mut urgent = Vec::new();
    write_message(&mut urgent, &UrgentMessage::Resize(WindowSize { rows: 50, cols: 132 }))?;
    write_message(&mut urgent, &UrgentMessage::Signal { signal: 2 })?;
    Ok(vec![("requests", requests), ("messages", messages), ("urgent", urgent)])
}

/// A line and frames of a stream.
fn forwards() -> Vec<(&'static str, Vec<u8>)> {
    let with = |line: &str, frames: &[&[u8]]| [line.as_bytes(), b"\n", &frames.concat()].concat();
    let hello: &[u8] = b"\0\0\0\x05hello";
    vec![
        ("host", with(r#"{"action":"forward","port":80}"#, &[hello, &[2, 0, 0x80, 0], &[1, 0, 0, 0]])),
        ("guest", with(r#"{"status":"ok"}"#, &[hello, hello, &[3, 0, 0, 0]])),
        (
            "process",
            with(
                r#"{"status":"ok"}"#,
                &[hello, b"\0\0\x40\x03err", b"\x04\0\0\x1b{\"message\":\"exit\",\"code\":3}", &[1, 0, 0, 0]],
            ),
        ),
        (
            "terminal",
            with(
                r#"{"status":"ok"}"#,
                &[b"\x05\0\0\x27{\"urgent\":\"resize\",\"rows\":50,\"cols\":90}", hello, &[1, 0, 0, 0]],
            ),
        ),
        ("refused", with(r#"{"status":"error","code":"busy","message":"no"}"#, &[])),
    ]
}

/// Configurations of networks, and a result of a plugin.
fn networks() -> [(&'static str, &'static str); 3] {
    [
        (
            "list",
            r#"{"cniVersion":"1.0.0","name":"web","plugins":[{"type":"bridge","ipam":{"type":"host-local"}},{"type":"portmap","capabilities":{"portMappings":true}}]}"#,
        ),
        ("single", r#"{"cniVersion":"0.3.1","name":"old","type":"ptp"}"#),
        (
            "result",
            r#"{"cniVersion":"1.0.0","interfaces":[{"name":"br0"},{"name":"eth0","sandbox":"/x"}],"ips":[{"interface":1,"address":"10.9.0.2/24"}],"dns":{"nameservers":["10.9.0.1"],"search":["lan"],"options":["ndots:2"]}}"#,
        ),
    ]
}

fn main() -> Result<(), Box<dyn Error>> {
    let out = std::env::args().nth(1).ok_or("usage: seeds DIR")?;
    let put = |target: &str, name: &str, bytes: &[u8]| -> Result<(), Box<dyn Error>> {
        let dir = Path::new(&out).join(target);
        fs::create_dir_all(&dir)?;
        Ok(fs::write(dir.join(name), bytes)?)
    };
    let tars = tars();
    for (name, tar) in &tars {
        put("tar", name, tar)?;
        put("layers", name, &[&[0; 5], tar.as_slice()].concat())?;
        // The other streams add nothing to these.
        if matches!(*name, "files" | "links" | "kinds" | "pax") {
            put("erofs", name, &build_in_memory(&[tar], RootfsCompression::None, 1 << 20)?)?;
            put("erofs", &format!("{name}-lz4"), &build_in_memory(&[tar], RootfsCompression::Lz4, 1 << 20)?)?;
        }
    }
    for pair in tars.windows(2) {
        let [(first, below), (second, above)] = pair else { continue };
        let [a, b] = u16::try_from(below.len())?.to_le_bytes();
        put("layers", &format!("{first}-{second}"), &[&[1, a, b, 0, 0], below.as_slice(), above].concat())?;
    }
    for (number, reference) in references().iter().enumerate() {
        put("reference", &number.to_string(), reference.as_bytes())?;
    }
    for (name, text) in documents() {
        put("image_json", name, text.as_bytes())?;
    }
    for (name, text) in networks() {
        put("cni", name, text.as_bytes())?;
    }
    for (name, lines) in wires()? {
        put("wire", name, &lines)?;
    }
    for (name, bytes) in forwards() {
        put("forward", name, &bytes)?;
    }
    for name in ["hello.yaml", "shop.yaml"] {
        put("manifest", name, &fs::read(Path::new("examples").join(name))?)?;
    }
    Ok(())
}
