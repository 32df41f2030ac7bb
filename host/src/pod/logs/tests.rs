use super::*;
use proptest::prelude::*;

fn all(reader: &mut LogReader) -> Vec<u8> {
    let mut bytes = Vec::new();
    while let Some(entry) = reader.next_entry().unwrap() {
        bytes.extend(entry.content);
    }
    bytes
}

fn encoded(time: &str, stream: LogStream, bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    pieces(bytes, 20).for_each(|(content, full)| put(&mut out, time, stream, full, None, content));
    out
}

#[test]
fn entries_are_as_the_format_says() {
    let time = format_time("2026-01-02T03:04:05.6Z".parse().unwrap());
    let out = encoded(&time, LogStream::Stdout, b"hello\n\nhalf");
    let text = String::from_utf8(out).unwrap();
    let expected = "2026-01-02T03:04:05.600000000Z stdout F hello\n2026-01-02T03:04:05.600000000Z stdout F \n\
                    2026-01-02T03:04:05.600000000Z stdout P half\n";
    assert_eq!(text, expected);
}

#[test]
fn full_files_are_put_aside_and_a_reader_misses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("c.log");
    let mut writer = LogWriter::open(&path, LogLimits { max_size: 1000, max_files: 3 }).unwrap();
    let mut reader = LogReader::new("c".parse().unwrap(), path.clone());
    let mut expected = Vec::new();
    let mut got = Vec::new();
    for number in 0..200 {
        let line = format!("line {number}\n");
        writer.write(LogStream::Stdout, line.as_bytes()).unwrap();
        expected.extend(line.as_bytes());
        got.extend(all(&mut reader));
    }
    assert_eq!(got, expected);
    let files = fs::read_dir(dir.path()).unwrap().count();
    assert_eq!(files, 3);
    let mut late = LogReader::new("c".parse().unwrap(), path);
    let kept = all(&mut late);
    assert!(expected.ends_with(&kept) && kept.len() > 300, "{}", kept.len());
}

#[test]
fn a_reader_that_is_rotations_behind_misses_no_file_that_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("c.log");
    let mut writer = LogWriter::open(&path, LogLimits { max_size: 200, max_files: 5 }).unwrap();
    let mut reader = LogReader::new("c".parse().unwrap(), path);
    let mut expected = Vec::new();
    let mut got = Vec::new();
    for number in 0..100 {
        let line = format!("line {number}\n");
        writer.write(LogStream::Stdout, line.as_bytes()).unwrap();
        expected.extend(line.as_bytes());
        // Some ten lines fill three files.
        if number % 10 == 0 {
            got.extend(all(&mut reader));
        }
    }
    got.extend(all(&mut reader));
    assert_eq!(String::from_utf8(got).unwrap(), String::from_utf8(expected).unwrap());
}

/// Empty lines grow most, and one line is longer than a file.
#[test]
fn no_file_is_larger_than_its_limit_whatever_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("c.log");
    let limits = LogLimits { max_size: MIN_SIZE, max_files: 3 };
    let mut writer = LogWriter::open(&path, limits).unwrap();
    let mut expected = Vec::new();
    for bytes in [vec![b'\n'; 64 << 10], vec![b'x'; 64 << 10], b"y\n".repeat(32 << 10)] {
        writer.write(LogStream::Stdout, &bytes).unwrap();
        expected.extend(bytes);
        for file in fs::read_dir(dir.path()).unwrap() {
            let length = file.unwrap().metadata().unwrap().len();
            assert!(length <= limits.max_size, "{length}");
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3);
        let kept = all(&mut LogReader::new("c".parse().unwrap(), path.clone()));
        assert!(expected.ends_with(&kept) && !kept.is_empty());
        assert!(writer.buffer.capacity() < 4 * MAX_BUFFER, "{}", writer.buffer.capacity());
    }
}

/// The writer is never so far ahead that it removes a file that the reader has not read.
#[test]
fn a_reader_beside_a_flood_misses_nothing_and_reads_nothing_twice() {
    use std::sync::atomic::{AtomicUsize, Ordering};
    const LINES: usize = 30_000;
    // A file has some eighty lines.
    const AHEAD: usize = 150;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("c.log");
    let mut writer = LogWriter::open(&path, LogLimits { max_size: MIN_SIZE, max_files: 5 }).unwrap();
    let read = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for number in 0..LINES {
                while number > read.load(Ordering::Acquire) + AHEAD {
                    std::thread::yield_now();
                }
                writer.write(LogStream::Stdout, format!("{number}\n").as_bytes()).unwrap();
            }
        });
        let mut reader = LogReader::new("c".parse().unwrap(), path);
        for number in 0..LINES {
            let entry = loop {
                match reader.next_entry().unwrap() {
                    Some(entry) => break entry,
                    None => std::thread::yield_now(),
                }
            };
            assert_eq!(String::from_utf8(entry.content).unwrap(), format!("{number}\n"));
            read.store(number, Ordering::Release);
        }
    });
}

/// Whatever the disk has room for, each entry is either in the log or handed back, in order, and the log has no piece of one.
#[test]
fn what_has_no_room_is_handed_back_and_nothing_is_lost_or_there_twice() {
    let lines = |from: usize| (from..from + 5).map(|n| format!("line {n}\n")).collect::<String>();
    let contents = |entries: &[u8]| -> String {
        let lines = entries.split_inclusive(|&byte| byte == b'\n');
        let decoded = lines.map(|line| decode(line.strip_suffix(b"\n").unwrap()).unwrap());
        decoded.map(|entry| String::from_utf8(entry.content).unwrap()).collect()
    };
    for room in 0..400 {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.log");
        let mut writer = LogWriter::open(&path, LogLimits::of(LogOptions::default(), 1)).unwrap();
        let mut reader = LogReader::new("c".parse().unwrap(), path.clone());
        writer.begin_run(3);
        writer.file.room = Some(room);
        let (mut shown, mut lost) = (String::new(), String::new());
        for round in 0..3 {
            if let Err(unwritten) = writer.write(LogStream::Stdout, lines(5 * round).as_bytes()) {
                assert!(!unwritten.entries.is_empty());
                lost.push_str(&contents(&unwritten.entries));
            }
            shown.push_str(&String::from_utf8(all(&mut reader)).unwrap());
            assert_eq!(fs::metadata(&path).unwrap().len(), writer.size);
        }
        assert_eq!(format!("{shown}{lost}"), lines(0) + &lines(5) + &lines(10), "{room}");
        writer.file.room = None;
        writer.write(LogStream::Stdout, b"later\n").unwrap();
        assert_eq!(all(&mut reader), b"later\n");
        let again = all(&mut LogReader::new("c".parse().unwrap(), path.clone()));
        assert_eq!(String::from_utf8(again).unwrap(), format!("{shown}later\n"));
        // What comes after a gap names its run again.
        let of_run = all(&mut LogReader::new("c".parse().unwrap(), path).of_run(3));
        assert_eq!(String::from_utf8(of_run).unwrap(), format!("{shown}later\n"));
    }
}

/// The reader has seen a piece of an entry that is taken away.
#[test]
fn a_piece_that_is_taken_away_spoils_no_later_entry() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("c.log");
    let whole = encoded("2026-01-01T00:00:00.000000000Z", LogStream::Stdout, b"one\n");
    let piece = &encoded("2026-01-01T00:00:01.000000000Z", LogStream::Stdout, b"two, longer\n")[..40];
    fs::write(&path, [&whole, piece].concat()).unwrap();
    let mut reader = LogReader::new("c".parse().unwrap(), path.clone());
    assert_eq!(all(&mut reader), b"one\n");
    let next = encoded("2026-01-01T00:00:02.000000000Z", LogStream::Stdout, b"three\n");
    fs::write(&path, [&whole[..], &next].concat()).unwrap();
    assert_eq!(all(&mut reader), b"three\n");
}

#[test]
fn a_pod_has_the_limits_of_the_kubelet_and_one_of_its_own() {
    let none = LogOptions::default();
    assert_eq!(LogLimits::of(none, 1), LogLimits { max_size: 10 << 20, max_files: 5 });
    assert_eq!(LogLimits::of(none, 10), LogLimits { max_size: 10 << 20, max_files: 5 });
    assert_eq!(LogLimits::of(none, 16), LogLimits { max_size: (500 << 20) / 80, max_files: 5 });
    let asked =
        LogOptions { max_size_bytes: Some(1 << 20), max_files: Some(2), max_pod_bytes: Some(3 << 20) };
    assert_eq!(LogLimits::of(asked, 1), LogLimits { max_size: 1 << 20, max_files: 2 });
    assert_eq!(LogLimits::of(asked, 3), LogLimits { max_size: 512 << 10, max_files: 2 });
    let little = LogOptions { max_files: Some(1000), max_pod_bytes: Some(64 << 10), ..none };
    assert_eq!(LogLimits::of(little, 16).max_size, MIN_SIZE);
}

#[test]
fn the_tail_is_counted_in_lines() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("c.log");
    let mut writer = LogWriter::open(&path, LogLimits::of(LogOptions::default(), 1)).unwrap();
    writer.write(LogStream::Stdout, b"1\n2\n3\n4").unwrap();
    for (lines, expected) in [(0, ""), (1, "4"), (2, "3\n4"), (9, "1\n2\n3\n4")] {
        let mut reader = LogReader::new("c".parse().unwrap(), path.clone());
        reader.tail(lines).unwrap();
        assert_eq!(all(&mut reader), expected.as_bytes(), "{lines}");
    }
}

#[test]
fn the_output_of_one_run_is_found_across_files() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("c.log");
    let limits = LogLimits { max_size: MIN_SIZE, max_files: 5 };
    let mut writer = LogWriter::open(&path, limits).unwrap();
    let write = |writer: &mut LogWriter, name: &str| {
        (0..100).for_each(|n| writer.write(LogStream::Stdout, format!("{name} {n}\n").as_bytes()).unwrap());
    };
    let text = |name: &str| (0..100).map(|n| format!("{name} {n}\n")).collect::<String>();
    // Run 1 says nothing.
    for (run, name) in [(0, "zero"), (2, "two"), (3, "three")] {
        writer.begin_run(run);
        write(&mut writer, name);
    }
    assert!(fs::read_dir(dir.path()).unwrap().count() > 3, "there are several files");
    let of = |run| LogReader::new("c".parse().unwrap(), path.clone()).of_run(run);
    let all_of = |run| String::from_utf8(all(&mut of(run))).unwrap();
    assert_eq!(all_of(0), text("zero"));
    assert_eq!(all_of(1), "");
    assert_eq!(all_of(2), text("two"));
    assert_eq!(all_of(3), text("three"));
    let mut tail = of(2);
    tail.tail(1).unwrap();
    assert_eq!(all(&mut tail), b"two 99\n");
    let whole = all(&mut LogReader::new("c".parse().unwrap(), path.clone()));
    assert_eq!(String::from_utf8(whole).unwrap(), text("zero") + &text("two") + &text("three"));
    // The oldest file that is left may begin within a run.
    (0..4).for_each(|_| write(&mut writer, "three"));
    let kept = all_of(3);
    assert!(!kept.is_empty() && kept == String::from_utf8(all(&mut of(3))).unwrap());
    assert_eq!(all_of(0), "");
}

#[test]
fn the_tail_has_whole_lines_where_streams_interleave() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("c.log");
    let mut writer = LogWriter::open(&path, LogLimits::of(LogOptions::default(), 1)).unwrap();
    for (stream, bytes) in [
        (LogStream::Stdout, "out 1 begins, "),
        (LogStream::Stderr, "error 1\nerror 2 begins, "),
        (LogStream::Stdout, "out 1 ends\nout 2 begins, "),
        (LogStream::Stderr, "error 2 ends\n"),
    ] {
        writer.write(stream, bytes.as_bytes()).unwrap();
    }
    let tail = |lines| {
        let mut reader = LogReader::new("c".parse().unwrap(), path.clone());
        reader.tail(lines).unwrap();
        reader
    };
    let text = |lines| String::from_utf8(all(&mut tail(lines))).unwrap();
    assert_eq!(text(0), "");
    assert_eq!(text(1), "out 2 begins, ");
    assert_eq!(text(2), "error 2 begins, out 2 begins, error 2 ends\n");
    assert_eq!(text(3), "out 1 begins, error 2 begins, out 1 ends\nout 2 begins, error 2 ends\n");
    assert_eq!(text(4), text(usize::MAX));
    // What follows a skipped piece is skipped up to the end of its line.
    let mut reader = tail(0);
    writer.write(LogStream::Stdout, b"out 2 ends\nout 3\n").unwrap();
    assert_eq!(all(&mut reader), b"out 3\n");
}

proptest! {
    #[test]
    fn any_output_comes_back_exactly(pieces in proptest::collection::vec(proptest::collection::vec(prop_oneof![Just(b'\n'), any::<u8>()], 0..50), 0..10)) {
        let out: Vec<u8> = pieces.iter().flat_map(|piece| encoded("2026-01-01T00:00:00.000000000Z", LogStream::Stderr, piece)).collect();
        let mut back = Vec::new();
        for line in out.split_inclusive(|&b| b == b'\n') {
            let entry = decode(line.strip_suffix(b"\n").unwrap());
            back.extend(entry.unwrap().content);
        }
        prop_assert_eq!(back, pieces.concat());
    }
}
