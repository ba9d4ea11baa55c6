//! Streams whose DEK came through a branch key.

use std::io::{Read, Write};

use waxseal::kek::KekErrorClass;
use waxseal::{Aad, Error, ErrorKind, StreamOptions, StreamReader, StreamWriter};
use waxseal_testing::support::{block_on, context};

use super::ground::{Fleet, Process, kek_id, ms, secs};

const CHUNK: usize = 4096;

fn writer(process: &Process) -> StreamWriter<Vec<u8>> {
    let options = StreamOptions::default().chunk_size(4096);
    let alice = context("alice");
    let begun = process.envelope.stream_encryptor(&alice, Aad::empty(), options);
    block_on(begun).unwrap().writer(Vec::new())
}

fn sealed(process: &Process) -> Vec<u8> {
    let mut writer = writer(process);
    writer.write_all(&[7; 100 * CHUNK]).unwrap();
    writer.finish().unwrap()
}

fn reader<'s>(process: &Process, sealed: &'s [u8]) -> StreamReader<&'s [u8]> {
    let alice = context("alice");
    block_on(process.envelope.decrypt_stream(&alice, Aad::empty(), sealed)).unwrap()
}

fn go_on(
    reader: &mut StreamReader<&[u8]>,
    writer: &mut StreamWriter<Vec<u8>>,
) -> [Option<ErrorKind>; 2] {
    let kind = |result: std::io::Result<()>| {
        result.err().map(|error| Error::of_io(&error).unwrap().kind())
    };
    [kind(reader.read_exact(&mut [0; CHUNK])), kind(writer.write_all(&[7; CHUNK]))]
}

#[test]
fn a_stream_outlasts_its_branch_key_and_ends_with_what_ends_the_branch() {
    type End = fn(&Fleet, &Process);
    let ends: [(&str, End); 5] = [
        ("erased", |_, process| {
            block_on(process.kek.erase([("tenant", "alice")])).unwrap();
        }),
        ("root revoked", |_, process| process.kek.revoke_kek(&kek_id("local:root"))),
        ("all evicted", |_, process| process.kek.evict_all()),
        ("denied", |fleet, process| {
            // Past the time of everything that is cached.
            fleet.clock.advance(secs(400));
            fleet.root.fail_with(KekErrorClass::Denied);
            let alice = context("alice");
            let written = block_on(process.envelope.encrypt(&alice, Aad::empty(), b"x"));
            assert!(written.is_err());
        }),
        ("the envelope's own context evicted", |_, process| {
            process.envelope.evict_context(&context("alice"));
        }),
    ];
    let mut scenes = Vec::new();
    for (name, end) in ends {
        // While the branch key is cached, and long after.
        for later in [secs(0), secs(1000)] {
            let fleet = Fleet::new();
            let (process, sealed) = (fleet.process(), sealed(&fleet.process()));
            scenes.push((name, end, later, fleet, process, sealed));
        }
    }
    let mut streams = Vec::new();
    for (_, _, later, fleet, process, sealed) in &scenes {
        streams.push((reader(process, sealed), writer(process)));
        fleet.clock.advance(*later);
    }
    // The wiper comes by.
    std::thread::sleep(ms(1100));
    for ((name, end, later, fleet, process, _), (mut reader, mut writer)) in
        scenes.iter().zip(streams)
    {
        assert_eq!(go_on(&mut reader, &mut writer), [None; 2], "{name} after {later:?}");
        block_on(process.kek.erase([("tenant", "bob")])).unwrap();
        assert_eq!(go_on(&mut reader, &mut writer), [None; 2], "{name} after {later:?}");
        end(fleet, process);
        let over = [Some(ErrorKind::Expired); 2];
        assert_eq!(go_on(&mut reader, &mut writer), over, "{name} after {later:?}");
    }
}
