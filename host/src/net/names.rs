//! DNS queries of a guest when only some names are allowed. A query is parsed and asked again with a new message and a new id, its answer
//! is checked against it, and the guest's answer is written anew: nothing that the guest or a server wrote passes through unchanged. Pure:
//! the caller sends and receives.

use super::allow::{AllowList, HostName, Ports};
use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, CNAME};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use std::collections::hash_map::RandomState;
use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher, Hasher};
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Queries that wait for answers.
const MAX_PENDING: usize = 64;
/// How long a query waits. The sender has given up by then.
const PENDING_TIME: Duration = Duration::from_secs(10);
const MAX_QUESTION: usize = 512;
/// Longest answer from a server.
const MAX_ANSWER: usize = 4096;
/// Longest answer to a guest that announced no size, and to any guest (RFC 1035, DNS flag day 2020).
const ANSWER_SIZES: [usize; 2] = [512, 1232];
/// Longest chain of CNAME records.
const MAX_CHAIN: usize = 16;
/// Most addresses of one answer.
const MAX_ADDRESSES: usize = 64;
/// Most addresses that are remembered.
pub const MAX_LEARNED: usize = 4096;
/// Least time that an address stays reachable, even if its record says less: the asking program is about to use it.
const MIN_TIME: Duration = Duration::from_secs(60);
/// Longest TTL that the guest is told.
const MAX_TTL: u32 = 3600;
/// Time added to that of the record, for programs that learned it just before its end.
const GRACE: Duration = Duration::from_secs(5);
/// Number of ports that queries come from. passt keeps a socket for each port it has seen, so there are few.
const PORTS: usize = 64;
/// The range of these ports.
const PORT_RANGE: std::ops::Range<u16> = 32_768..61_000;

/// The result of a guest's query.
#[derive(Debug, PartialEq, Eq)]
pub enum Asked {
    /// An immediate answer.
    Answer {
        bytes: Vec<u8>,
        /// The name, if it was refused.
        refused: Option<String>,
    },
    /// A query of ours to the same server.
    Ask { port: u16, bytes: Vec<u8> },
    /// Nothing, since it is not a query.
    Nothing,
}

/// The result of a server's answer.
#[derive(Debug, PartialEq, Eq)]
pub struct Answered {
    /// The guest's port that receives it.
    pub port: u16,
    pub bytes: Vec<u8>,
    /// The name that was asked for.
    pub name: String,
    /// Addresses of the name that are closed and were left out.
    pub closed: Vec<IpAddr>,
    /// Whether there was no room to remember all addresses.
    pub is_full: bool,
}

#[derive(Debug)]
struct Pending {
    guest_port: u16,
    server: IpAddr,
    id: u16,
    question: Query,
    wants_recursion: bool,
    size: usize,
    has_edns: bool,
    ports: Vec<Ports>,
    asked: Instant,
}

/// Ids that a guest cannot guess.
#[derive(Debug, Default)]
struct Secret {
    state: RandomState,
    count: u64,
}

impl Secret {
    fn next(&mut self) -> u64 {
        self.count += 1;
        let mut hasher = self.state.build_hasher();
        hasher.write_u64(self.count);
        hasher.finish()
    }

    fn below(&mut self, end: u16) -> u16 {
        u16::try_from(self.next() % u64::from(end.max(1))).unwrap_or(0)
    }
}

/// The resolver: pending queries and learned addresses.
#[derive(Debug)]
pub struct Resolver {
    allow: AllowList,
    secret: Secret,
    ports: Vec<u16>,
    pending: HashMap<(u16, u16), Pending>,
    learned: HashMap<IpAddr, BTreeMap<Ports, Instant>>,
}

impl Resolver {
    pub fn new(allow: AllowList) -> Self {
        let mut secret = Secret::default();
        let width = PORT_RANGE.end - PORT_RANGE.start;
        let ports = (0..PORTS).map(|_| PORT_RANGE.start + secret.below(width)).collect();
        Self { allow, secret, ports, pending: HashMap::new(), learned: HashMap::new() }
    }

    /// Whether an address is one of a valid answer.
    pub fn is_open(&self, address: IpAddr, port: Option<u16>, now: Instant) -> bool {
        let ports = self.learned.get(&address);
        ports.is_some_and(|ports| ports.iter().any(|(ports, until)| *until > now && ports.contains(port)))
    }

    /// A guest's query from this port to this server.
    pub fn ask(&mut self, bytes: &[u8], guest_port: u16, server: IpAddr, now: Instant) -> Asked {
        if bytes.len() > MAX_QUESTION {
            return Asked::Nothing;
        }
        let Ok(message) = Message::from_vec(bytes) else { return Asked::Nothing };
        if message.metadata.message_type != MessageType::Query {
            return Asked::Nothing;
        }
        let answer = |code: ResponseCode, refused: Option<String>| match reply(&message, code, Vec::new()) {
            Some(bytes) => Asked::Answer { bytes, refused },
            None => Asked::Nothing,
        };
        if message.metadata.op_code != OpCode::Query {
            return answer(ResponseCode::NotImp, None);
        }
        let [question] = &message.queries[..] else { return answer(ResponseCode::FormErr, None) };
        let shown = shown(question.name());
        let ports = match host_name(question.name()) {
            Some(name) if question.query_class() == DNSClass::IN => self.allow.ports_of(&name),
            _ => Vec::new(),
        };
        if ports.is_empty() {
            return answer(ResponseCode::Refused, Some(shown));
        }
        match question.query_type() {
            RecordType::A | RecordType::AAAA | RecordType::CNAME => {}
            // These records can contain addresses. Without them programs ask for A and AAAA.
            RecordType::HTTPS | RecordType::SVCB => return answer(ResponseCode::NoError, None),
            _ => return answer(ResponseCode::Refused, Some(shown)),
        }
        self.pending.retain(|_, pending| now.saturating_duration_since(pending.asked) < PENDING_TIME);
        if self.pending.len() >= MAX_PENDING {
            return answer(ResponseCode::ServFail, None);
        }
        let Some((port, id)) = self.free_number() else { return answer(ResponseCode::ServFail, None) };
        let mut question = Query::query(question.name().to_lowercase(), question.query_type());
        question.set_query_class(DNSClass::IN);
        let Some(bytes) = our_question(id, &question) else { return Asked::Nothing };
        let size = message.edns.as_ref().map_or(0, |edns| usize::from(edns.max_payload()));
        let pending = Pending {
            guest_port,
            server,
            id: message.metadata.id,
            question: message.queries[0].clone(),
            wants_recursion: message.metadata.recursion_desired,
            size: size.clamp(ANSWER_SIZES[0], ANSWER_SIZES[1]),
            has_edns: message.edns.is_some(),
            ports,
            asked: now,
        };
        self.pending.insert((port, id), pending);
        Asked::Ask { port, bytes }
    }

    fn free_number(&mut self) -> Option<(u16, u16)> {
        for _ in 0..8 {
            let index = usize::from(self.secret.below(u16::try_from(PORTS).unwrap_or(1)));
            let number = (*self.ports.get(index)?, self.secret.below(u16::MAX));
            if !self.pending.contains_key(&number) {
                return Some(number);
            }
        }
        None
    }

    /// An answer of this server to this port; `None` when it matches no query.
    pub fn answer(
        &mut self,
        bytes: &[u8],
        port: u16,
        server: IpAddr,
        now: Instant,
        is_closed: &dyn Fn(IpAddr) -> bool,
    ) -> Option<Answered> {
        if bytes.len() > MAX_ANSWER {
            return None;
        }
        let id = u16::from_be_bytes(bytes.get(..2)?.try_into().ok()?);
        let pending = self.pending.get(&(port, id)).filter(|pending| pending.server == server)?;
        let message = Message::from_vec(bytes).ok()?;
        let [question] = &message.queries[..] else { return None };
        let fits = message.metadata.message_type == MessageType::Response
            && question.name().eq_ignore_root_case(&pending.question.name().to_lowercase())
            && question.query_type() == pending.question.query_type()
            && question.query_class() == DNSClass::IN;
        if !fits {
            return None;
        }
        let pending = self.pending.remove(&(port, id))?;
        let code = match message.metadata.response_code {
            code @ (ResponseCode::NoError | ResponseCode::NXDomain) => code,
            _ => ResponseCode::ServFail,
        };
        let name = shown(pending.question.name());
        let mut answered = Answered {
            port: pending.guest_port,
            bytes: Vec::new(),
            name,
            closed: Vec::new(),
            is_full: false,
        };
        let records = if code == ResponseCode::NoError {
            chain(&pending.question, &message.answers)
        } else {
            Vec::new()
        };
        let mut kept = Vec::new();
        for record in records {
            if let Some(address) = address_of(&record) {
                if is_closed(address) {
                    answered.closed.push(address);
                    continue;
                }
                if !self.learn(address, &pending.ports, record.ttl, now) {
                    answered.is_full = true;
                    continue;
                }
            }
            kept.push(record);
        }
        answered.bytes = fitted(&pending, code, kept)?;
        Some(answered)
    }

    /// Makes an address reachable; false when too many are.
    fn learn(&mut self, address: IpAddr, ports: &[Ports], ttl: u32, now: Instant) -> bool {
        if !self.learned.contains_key(&address) && self.learned.len() >= MAX_LEARNED {
            self.learned.retain(|_, ports| {
                ports.retain(|_, until| *until > now);
                !ports.is_empty()
            });
            if self.learned.len() >= MAX_LEARNED {
                return false;
            }
        }
        let until = now + Duration::from_secs(ttl.into()).max(MIN_TIME) + GRACE;
        let known = self.learned.entry(address).or_default();
        for ports in ports {
            let end = known.entry(*ports).or_insert(until);
            *end = (*end).max(until);
        }
        true
    }
}

/// The name in the form that list entries are compared with.
fn host_name(name: &Name) -> Option<HostName> {
    // A name that is not ASCII or has a dot within a label is written with backslashes and is then not a host name.
    HostName::new(&name.to_ascii())
}

/// A name for messages: harmless and short.
fn shown(name: &Name) -> String {
    const LENGTH: usize = 80;
    let text: String = name.to_ascii().chars().filter(char::is_ascii_graphic).collect();
    let text = text.strip_suffix('.').unwrap_or(&text);
    text.get(..LENGTH).unwrap_or(text).to_owned()
}

fn our_question(id: u16, question: &Query) -> Option<Vec<u8>> {
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(question.clone());
    let mut edns = Edns::new();
    edns.set_max_payload(u16::try_from(MAX_ANSWER).unwrap_or(u16::MAX)).set_version(0);
    message.set_edns(edns);
    message.to_vec().ok()
}

/// An answer to a guest's message, to its first question.
fn reply(message: &Message, code: ResponseCode, records: Vec<Record>) -> Option<Vec<u8>> {
    let question = message.queries.first()?;
    let (id, recursion) = (message.metadata.id, message.metadata.recursion_desired);
    encoded(id, question, recursion, message.edns.is_some(), code, records)
}

fn encoded(
    id: u16,
    question: &Query,
    wants_recursion: bool,
    has_edns: bool,
    code: ResponseCode,
    records: Vec<Record>,
) -> Option<Vec<u8>> {
    let mut answer = Message::new(id, MessageType::Response, OpCode::Query);
    answer.metadata.recursion_desired = wants_recursion;
    answer.metadata.recursion_available = true;
    answer.metadata.response_code = code;
    answer.add_query(question.clone());
    answer.insert_answers(records);
    if has_edns {
        let mut edns = Edns::new();
        edns.set_max_payload(u16::try_from(ANSWER_SIZES[1]).unwrap_or(512)).set_version(0);
        answer.set_edns(edns);
    }
    answer.to_vec().ok()
}

/// The answer with as many records as the guest accepts. The last records, which are addresses, are left out: a program works with fewer
/// of them as well.
fn fitted(pending: &Pending, code: ResponseCode, mut records: Vec<Record>) -> Option<Vec<u8>> {
    loop {
        let (question, recursion) = (&pending.question, pending.wants_recursion);
        let bytes = encoded(pending.id, question, recursion, pending.has_edns, code, records.clone())?;
        if bytes.len() <= pending.size || records.pop().is_none() {
            return Some(bytes);
        }
    }
}

fn address_of(record: &Record) -> Option<IpAddr> {
    match &record.data {
        RData::A(A(four)) => Some(IpAddr::V4(*four)),
        RData::AAAA(AAAA(six)) => Some(IpAddr::V6(*six)),
        _ => None,
    }
}

/// The records of an answer that belong to the query, following CNAME records, written anew.
fn chain(question: &Query, answers: &[Record]) -> Vec<Record> {
    let mut records = Vec::new();
    let mut name = question.name().clone();
    for _ in 0..MAX_CHAIN {
        let own = |record: &&Record| {
            record.dns_class == DNSClass::IN && record.name.eq_ignore_root_case(&name.to_lowercase())
        };
        let of_type = |record: &&Record| record.record_type() == question.query_type();
        let found = answers.iter().filter(own).filter(of_type).filter(|record| address_of(record).is_some());
        let before = records.len();
        records.extend(
            found
                .take(MAX_ADDRESSES)
                .map(|record| Record::from_rdata(name.clone(), record.ttl.min(MAX_TTL), record.data.clone())),
        );
        let next = answers.iter().filter(own).find_map(|record| match &record.data {
            RData::CNAME(CNAME(target)) => Some((record.ttl, target.clone())),
            _ => None,
        });
        let Some((ttl, target)) = next.filter(|_| records.len() == before) else { break };
        let alias = RData::CNAME(CNAME(target.clone()));
        records.push(Record::from_rdata(name, ttl.min(MAX_TTL), alias));
        if question.query_type() == RecordType::CNAME {
            break;
        }
        name = target;
    }
    records
}

#[cfg(test)]
mod tests;
