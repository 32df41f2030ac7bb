//! `grpc`: a call of the standard health service (`grpc.health.v1.Health/Check`) and its judgement, as by the kubelet.

use super::Outcome;
use super::h2::{Answer, Call};
use super::wire::{Broken, Limit, Where, Wire, broken};
use std::io::{Read, Write};

const METHOD: &str = "/grpc.health.v1.Health/Check";
const AGENT: &str = "kube-probe/magikvm";
/// Bytes that are read at once.
const PIECE: usize = 4096;
/// The code of a method that a server does not have.
const UNIMPLEMENTED: u32 = 12;
/// The code of a call that took too long.
const DEADLINE_EXCEEDED: u32 = 4;

/// Names of the codes, as Go's `codes` prints them.
const CODES: [&str; 17] = [
    "OK",
    "Canceled",
    "Unknown",
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    "Unimplemented",
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
];

/// Asks and judges. `None` if it was cancelled.
pub(super) fn check(place: &Where, port: u16, service: &str, limit: &Limit) -> Option<Outcome> {
    let (at, timeout) = (place.with_port(port), limit.timeout);
    let failure = |text: String| Some(Outcome::Failure(text));
    let mut wire = match Wire::connect(place, port, limit) {
        Ok(wire) => wire,
        Err(Broken::Cancelled) => return None,
        Err(Broken::TimedOut { .. }) => {
            return failure(format!(
                "timeout: failed to connect service {at:?} within {timeout:?}: context deadline exceeded"
            ));
        }
        Err(why) => {
            return failure(format!("error: failed to connect service at {at:?}: {why}"));
        }
    };
    match call(&mut wire, &at, service, limit) {
        Ok(answer) => judge(&answer, limit),
        Err(Broken::Cancelled) => None,
        Err(Broken::TimedOut { .. }) => failure(late(limit)),
        Err(why) => failure(failed("Unavailable", &why.to_string())),
    }
}

fn late(limit: &Limit) -> String {
    format!("timeout: health rpc did not complete within {:?}", limit.timeout)
}

fn failed(code: &str, text: &str) -> String {
    format!("error: health rpc probe failed: rpc error: code = {code} desc = {text}")
}

fn call(wire: &mut Wire, at: &str, service: &str, limit: &Limit) -> Result<Answer, Broken> {
    let timeout = u64::try_from(limit.timeout.as_millis()).unwrap_or(u64::MAX);
    let mut call = Call::new(at, METHOD, AGENT, timeout, &request(service));
    let mut piece = [0; PIECE];
    loop {
        wire.write_all(&call.take_outbox()).map_err(|error| broken(&error))?;
        let count = wire.read(&mut piece).map_err(|error| broken(&error))?;
        if count == 0 {
            return Err(Broken::Failed("error reading server preface: EOF".to_owned()));
        }
        let answer = call.receive(&piece[..count]).map_err(|error| Broken::Failed(error.to_string()))?;
        if let Some(answer) = answer {
            return Ok(answer);
        }
    }
}

/// `HealthCheckRequest`: field 1 is the service.
fn request(service: &str) -> Vec<u8> {
    let mut message = Vec::new();
    if !service.is_empty() {
        message.push(1 << 3 | 2);
        write_varint(&mut message, service.len());
        message.extend_from_slice(service.as_bytes());
    }
    message
}

fn write_varint(message: &mut Vec<u8>, mut number: usize) {
    while number >= 0x80 {
        message.push(u8::try_from(number & 0x7f).unwrap_or_default() | 0x80);
        number >>= 7;
    }
    message.push(u8::try_from(number).unwrap_or_default());
}

/// `HealthCheckResponse`: field 1 is the status. Other fields are skipped; `None`: the message is malformed.
fn status(message: &[u8]) -> Option<u64> {
    let mut rest = message;
    let mut found = 0;
    while !rest.is_empty() {
        let tag = read_varint(&mut rest)?;
        let skipped = match tag & 7 {
            0 => {
                let value = read_varint(&mut rest)?;
                if tag >> 3 == 1 {
                    found = value;
                }
                0
            }
            1 => 8,
            2 => usize::try_from(read_varint(&mut rest)?).ok()?,
            5 => 4,
            _ => return None,
        };
        rest = rest.get(skipped..)?;
    }
    Some(found)
}

fn read_varint(rest: &mut &[u8]) -> Option<u64> {
    let mut number = 0u64;
    for shift in (0..64).step_by(7) {
        let (&byte, behind) = rest.split_first()?;
        *rest = behind;
        number |= u64::from(byte & 0x7f).checked_shl(shift)?;
        if byte < 0x80 {
            return Some(number);
        }
    }
    None
}

fn judge(answer: &Answer, limit: &Limit) -> Option<Outcome> {
    let failure = |text: String| Some(Outcome::Failure(text));
    let (code, text) = match answer.grpc_status {
        Some(code) => (code, answer.grpc_message.clone()),
        // As Go maps them, the statuses that proxies and servers of other things answer with.
        None => {
            let code = match answer.http_status {
                400 | 502 | 503 | 504 => 14,
                401 => 16,
                403 => 7,
                404 => UNIMPLEMENTED,
                429 => 14,
                _ => 2,
            };
            let text = match answer.http_status {
                200 => "server closed the stream without sending trailers".to_owned(),
                status => format!("unexpected HTTP status code received from server: {status}"),
            };
            (code, text)
        }
    };
    match code {
        0 => {}
        UNIMPLEMENTED => {
            return failure(format!(
                "error: this server does not implement the grpc health protocol (grpc.health.v1.Health): {text}"
            ));
        }
        DEADLINE_EXCEEDED => return failure(late(limit)),
        code => {
            let name = usize::try_from(code).ok().and_then(|code| CODES.get(code));
            let name = name.map_or_else(|| format!("Code({code})"), |name| (*name).to_owned());
            return failure(failed(&name, &text));
        }
    }
    match answer.message.as_deref().and_then(status) {
        Some(1) => Some(Outcome::Success),
        Some(other) => {
            let name = match other {
                0 => "UNKNOWN".to_owned(),
                2 => "NOT_SERVING".to_owned(),
                3 => "SERVICE_UNKNOWN".to_owned(),
                other => other.to_string(),
            };
            failure(format!("service unhealthy (responded with {name:?})"))
        }
        None => failure(failed("Internal", "the answer is not a HealthCheckResponse")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_of_the_health_service_are_written_and_read() {
        assert_eq!(request(""), b"");
        assert_eq!(request("shop"), b"\x0a\x04shop");
        assert_eq!(request(&"x".repeat(300))[..3], [0x0a, 0xac, 0x02]);
        assert_eq!(status(b""), Some(0));
        assert_eq!(status(b"\x08\x01"), Some(1));
        // Fields that a later version of the service adds.
        assert_eq!(status(b"\x12\x02ab\x08\x02\x1d\x00\x00\x00\x00"), Some(2));
        for wrong in [
            &b"\x08"[..],
            b"\x08\x80",
            b"\x12\x09ab",
            b"\x0b",
            &[0x08, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255],
        ] {
            assert_eq!(status(wrong), None, "{wrong:?}");
        }
    }
}
