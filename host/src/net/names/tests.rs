use super::*;
use crate::net::DNS_4;
use proptest::prelude::*;

const SERVER: IpAddr = IpAddr::V4(DNS_4);

fn resolver(list: &str) -> Resolver {
    Resolver::new(AllowList::parse(list).unwrap())
}

fn name(text: &str) -> Name {
    Name::from_ascii(text).unwrap()
}

fn question(host: &str, kind: RecordType) -> Vec<u8> {
    let mut message = Message::new(4711, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(name(host), kind));
    message.to_vec().unwrap()
}

fn a(host: &str, ttl: u32, address: &str) -> Record {
    Record::from_rdata(name(host), ttl, RData::A(A(address.parse().unwrap())))
}

fn cname(host: &str, target: &str) -> Record {
    Record::from_rdata(name(host), 300, RData::CNAME(CNAME(name(target))))
}

/// Asks, and has a server answer with these records.
fn answered(resolver: &mut Resolver, host: &str, records: Vec<Record>, now: Instant) -> Option<Answered> {
    let Asked::Ask { port, bytes } = resolver.ask(&question(host, RecordType::A), 999, SERVER, now) else {
        panic!("refused")
    };
    let mut message = Message::from_vec(&bytes).unwrap();
    message.metadata.message_type = MessageType::Response;
    message.insert_answers(records);
    let closed = |address: IpAddr| address.is_loopback();
    resolver.answer(&message.to_vec().unwrap(), port, SERVER, now, &closed)
}

fn open(resolver: &Resolver, address: &str, port: u16, now: Instant) -> bool {
    resolver.is_open(address.parse().unwrap(), Some(port), now)
}

#[test]
fn an_allowed_name_opens_its_addresses_for_its_port_and_time() {
    let (mut resolver, now) = (resolver("Good.example:443,*.good.example:80"), Instant::now());
    let records = vec![a("good.example.", 300, "192.0.2.7"), a("other.example.", 300, "192.0.2.8")];
    let heard = answered(&mut resolver, "gOOd.example.", records, now).unwrap();
    assert_eq!(heard.port, 999);
    let message = Message::from_vec(&heard.bytes).unwrap();
    assert_eq!(message.metadata.id, 4711);
    assert_eq!(message.queries[0].name().to_ascii(), "gOOd.example.", "the guest's own spelling");
    assert_eq!(message.answers.len(), 1);
    assert!(open(&resolver, "192.0.2.7", 443, now));
    assert!(!open(&resolver, "192.0.2.7", 80, now));
    assert!(!open(&resolver, "192.0.2.8", 443, now), "a record that nobody asked for");
    assert!(open(&resolver, "192.0.2.7", 443, now + Duration::from_secs(300)));
    assert!(!open(&resolver, "192.0.2.7", 443, now + Duration::from_secs(306)));
}

#[test]
fn a_short_time_is_made_longer_and_a_long_one_shorter() {
    let (mut resolver, now) = (resolver("a.example"), Instant::now());
    let records = vec![a("a.example.", 0, "192.0.2.1"), a("a.example.", 1 << 30, "192.0.2.2")];
    let heard = answered(&mut resolver, "a.example.", records, now).unwrap();
    let message = Message::from_vec(&heard.bytes).unwrap();
    assert_eq!(message.answers.iter().map(|record| record.ttl).collect::<Vec<_>>(), [0, 3600]);
    assert!(open(&resolver, "192.0.2.1", 1, now + Duration::from_secs(60)));
    assert!(!open(&resolver, "192.0.2.1", 1, now + Duration::from_secs(70)));
    assert!(!open(&resolver, "192.0.2.2", 1, now + Duration::from_secs(3700)));
}

#[test]
fn other_names_and_kinds_are_refused_at_once() {
    let (mut resolver, now) = (resolver("a.example,10.0.0.0/8"), Instant::now());
    let code = |asked: Asked| {
        let Asked::Answer { bytes, refused } = asked else { panic!("{asked:?}") };
        (Message::from_vec(&bytes).unwrap().metadata.response_code, refused)
    };
    let mut ask = |host: &str, kind| code(resolver.ask(&question(host, kind), 1, SERVER, now));
    assert_eq!(ask("b.example.", RecordType::A), (ResponseCode::Refused, Some("b.example".to_owned())));
    assert_eq!(ask("a.example.", RecordType::TXT), (ResponseCode::Refused, Some("a.example".to_owned())));
    assert_eq!(ask("a.example.", RecordType::ANY).0, ResponseCode::Refused);
    assert_eq!(ask("a.example.", RecordType::HTTPS), (ResponseCode::NoError, None));
    assert_eq!(ask(".", RecordType::NS).0, ResponseCode::Refused);
    assert_eq!(ask("a\\.example.", RecordType::A).0, ResponseCode::Refused, "a dot within a label");
    assert_eq!(resolver.ask(b"nonsense", 1, SERVER, now), Asked::Nothing);
}

#[test]
fn a_chain_of_names_is_followed_and_closed_addresses_are_left_out() {
    let (mut resolver, now) = (resolver("a.example"), Instant::now());
    let records = vec![
        a("c.example.", 60, "192.0.2.3"),
        cname("b.example.", "C.example."),
        cname("a.example.", "b.example."),
        a("c.example.", 60, "127.0.0.1"),
        a("d.example.", 60, "192.0.2.4"),
    ];
    let heard = answered(&mut resolver, "a.example.", records, now).unwrap();
    assert_eq!(heard.closed, ["127.0.0.1".parse::<IpAddr>().unwrap()]);
    assert_eq!(Message::from_vec(&heard.bytes).unwrap().answers.len(), 3);
    assert!(open(&resolver, "192.0.2.3", 1, now));
    assert!(!open(&resolver, "127.0.0.1", 1, now));
    assert!(!open(&resolver, "192.0.2.4", 1, now));
}

#[test]
fn a_circle_of_names_ends() {
    let mut resolver = resolver("a.example");
    let records = vec![cname("a.example.", "b.example."), cname("b.example.", "a.example.")];
    let heard = answered(&mut resolver, "a.example.", records, Instant::now()).unwrap();
    assert!(heard.bytes.len() <= 512);
}

#[test]
fn answers_that_nobody_asked_for_change_nothing() {
    let (mut resolver, now) = (resolver("a.example"), Instant::now());
    let Asked::Ask { port, bytes } = resolver.ask(&question("a.example.", RecordType::A), 9, SERVER, now)
    else {
        panic!()
    };
    let good = {
        let mut message = Message::from_vec(&bytes).unwrap();
        message.metadata.message_type = MessageType::Response;
        message.insert_answers(vec![a("a.example.", 60, "192.0.2.1")]);
        message
    };
    let mut other_id = good.clone();
    other_id.metadata.id ^= 1;
    let mut question_again = good.clone();
    question_again.metadata.message_type = MessageType::Query;
    let mut other_name = good.clone();
    other_name.queries = vec![Query::query(name("evil.example."), RecordType::A)];
    let mut other_type = good.clone();
    other_type.queries = vec![Query::query(name("a.example."), RecordType::AAAA)];
    let mut two = good.clone();
    two.add_query(Query::query(name("a.example."), RecordType::A));
    let mut hear = |message: &Message, port, server| {
        resolver.answer(&message.to_vec().unwrap(), port, server, now, &|_| false)
    };
    for wrong in [other_id, question_again, other_name, other_type, two] {
        assert_eq!(hear(&wrong, port, SERVER), None);
    }
    assert_eq!(hear(&good, port ^ 1, SERVER), None, "another port");
    assert_eq!(hear(&good, port, "192.0.2.53".parse().unwrap()), None, "another server");
    assert!(hear(&good, port, SERVER).is_some());
    assert_eq!(hear(&good, port, SERVER), None, "twice");
}

#[test]
fn only_so_many_wait_and_those_that_wait_long_are_forgotten() {
    let (mut resolver, now) = (resolver("*.example"), Instant::now());
    let mut waits = |count: usize, now| {
        let ask = |n| resolver.ask(&question(&format!("x{n}.example."), RecordType::A), 9, SERVER, now);
        (0..count).map(ask).filter(|asked| matches!(asked, Asked::Ask { .. })).count()
    };
    assert_eq!(waits(1000, now), MAX_PENDING);
    assert_eq!(waits(1000, now + PENDING_TIME), MAX_PENDING);
}

#[test]
fn only_so_many_addresses_are_remembered_and_old_ones_make_room() {
    let (mut resolver, now) = (resolver("a.example"), Instant::now());
    let mut learn = |from: u32, count: u32, now| {
        (0..count).filter(|n| resolver.learn(IpAddr::V4((from + n).into()), &[Ports::All], 1, now)).count()
    };
    assert_eq!(learn(1 << 24, 5000, now), MAX_LEARNED);
    assert_eq!(learn(2 << 24, 10, now), 0);
    assert_eq!(learn(2 << 24, 10, now + Duration::from_secs(70)), 10);
}

#[test]
fn an_answer_is_made_to_fit() {
    let mut resolver = resolver("a.example");
    let records = (0..60).map(|n| a("a.example.", 60, &format!("192.0.2.{n}"))).collect();
    let heard = answered(&mut resolver, "a.example.", records, Instant::now()).unwrap();
    assert!(heard.bytes.len() <= 512);
    let message = Message::from_vec(&heard.bytes).unwrap();
    assert!(message.answers.len() > 10 && !message.metadata.truncation);
}

proptest! {
    #[test]
    fn no_message_is_too_strange(bytes in proptest::collection::vec(any::<u8>(), 0..300), flip in 0..200usize, value: u8) {
        let (mut resolver, now) = (resolver("*.example"), Instant::now());
        drop(resolver.ask(&bytes, 1, SERVER, now));
        let mut asked = question("a.example.", RecordType::A);
        if let Some(byte) = asked.get_mut(flip) {
            *byte = value;
        }
        if let Asked::Ask { port, bytes: ours } = resolver.ask(&asked, 1, SERVER, now) {
            let mut noise = ours[..2].to_vec();
            noise.extend(&bytes);
            prop_assert_eq!(resolver.answer(&noise, port, SERVER, now, &|_| false), None);
        }
    }
}
