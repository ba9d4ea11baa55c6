//! What the records say, and what they never say.

use std::collections::BTreeMap;

use waxseal::audit::{
    AuditKey, AuditTrail, CheckpointKey, ContextValue, Disclosure, Record, TrailDirectory,
};
use waxseal::kek::scripted::ScriptedKek;
use waxseal::kek::{KekErrorClass, KekProvider};
use waxseal::{
    Aad, Access, Envelope, ErrorKind, Event, KekId, Limits, ManualClock, Observer, Operation,
};
use waxseal_testing::support::stage::entries_of;
use waxseal_testing::support::{block_on, local};

use crate::ground::{LONG, Place, activities, builder, context, flushed, record, unwrapped};

#[test]
fn each_use_of_a_kek_and_each_dek_is_recorded_with_its_ids() {
    let place = Place::new();
    let trail = builder(&place).service("cards").start().unwrap();
    let kek = local("audited");
    let envelope =
        || Envelope::builder().wrap_with(kek.clone()).observer(trail.clone()).build().unwrap();
    let sealed = block_on(envelope().encrypt(&context(), Aad::empty(), b"text")).unwrap();
    let dek_id = waxseal::inspect(&sealed).unwrap().dek_id.to_string();
    block_on(envelope().decrypt(&context(), Aad::empty(), &sealed)).unwrap();
    flushed(&trail);
    let records = place.records();
    let of = |activity: &str| {
        records.iter().find(|record| record.activity == activity).cloned().unwrap_or_default()
    };
    for activity in ["dek_wrapped", "dek_made", "dek_unwrapped"] {
        let record = of(activity);
        assert_eq!(record.dek_id.as_deref(), Some(&*dek_id), "{activity}: {records:#?}");
        assert_eq!(record.status.as_deref(), Some("Success"));
        assert_eq!(record.service.as_deref(), Some("cards"));
    }
    assert_eq!(of("dek_unwrapped").kek_id.as_deref(), Some("local:audited"));
    assert_eq!(of("dek_made").kek_ids, ["local:audited"]);
}

#[test]
fn an_outage_and_a_denial_are_recorded_with_their_kind() {
    let place = Place::new();
    let (kek, clock) = (ScriptedKek::new("kek").unwrap(), ManualClock::new());
    let trail = builder(&place).clock(clock.clone()).start().unwrap();
    let limits = Limits::default().max_age(LONG).stale_if_error_reading(LONG);
    let envelope = Envelope::builder()
        .wrap_with(kek.clone())
        .clock(clock.clone())
        .limits(limits)
        .observer(trail.clone())
        .build()
        .unwrap();
    let other = Envelope::builder().wrap_with(kek.local().clone()).build().unwrap();
    let sealed = block_on(other.encrypt(&context(), Aad::empty(), b"text")).unwrap();
    let read = || block_on(envelope.decrypt(&context(), Aad::empty(), &sealed)).map(|_| ());
    read().unwrap();
    kek.fail_with(KekErrorClass::Unavailable);
    clock.advance(LONG);
    read().unwrap();
    kek.fail_with(KekErrorClass::Denied);
    clock.advance(LONG / 2);
    assert_eq!(read().unwrap_err().kind(), ErrorKind::Denied);
    flushed(&trail);
    let records = place.records();
    let of = |activity: &str| {
        let found = records.iter().find(|record| record.activity == activity);
        found.and_then(|record| record.error_type.clone()).unwrap_or_default()
    };
    assert_eq!(of("dek_served_stale"), "unavailable");
    assert_eq!(of("denied"), "denied");
    let called = records.iter().filter(|record| record.activity == "kek_called");
    let kinds: Vec<_> = called.map(|record| record.error_type.clone()).collect();
    assert!(kinds.contains(&None) && kinds.contains(&Some("unavailable".into())), "{kinds:?}");
    assert!(kinds.contains(&Some("denied".into())), "{kinds:?}");
}

#[test]
fn a_value_of_the_context_is_left_out_hashed_or_clear_by_its_name() {
    let key = || AuditKey::from_slice(&(0..32).collect::<Vec<u8>>()).unwrap();
    let shown =
        |edit: fn(waxseal::audit::AuditTrailBuilder) -> waxseal::audit::AuditTrailBuilder| {
            let place = Place::new();
            let trail = edit(builder(&place).context_key(key())).start().unwrap();
            record(&trail, 0..1);
            assert!(trail.close());
            place.records().iter().find_map(|record| record.context.clone()).unwrap()
        };
    let pairs = |tenant: ContextValue, table: ContextValue| {
        BTreeMap::from([("tenant".to_owned(), tenant), ("table".to_owned(), table)])
    };
    let hashed = ContextValue::Hashed { hmac: key().hash_value("tenant", "acme").unwrap() };
    let clear = || ContextValue::Clear("cards".to_owned());
    assert_eq!(shown(|builder| builder), pairs(ContextValue::LeftOut, ContextValue::LeftOut));
    assert_eq!(
        shown(|builder| builder
            .context_value("tenant", Disclosure::Hashed)
            .context_value("table", Disclosure::Clear)),
        pairs(hashed.clone(), clear())
    );
    assert_eq!(
        shown(|builder| builder
            .other_context_values(Disclosure::Clear)
            .context_value("tenant", Disclosure::Hashed)),
        pairs(hashed, clear())
    );
}

#[test]
fn each_option_that_cannot_work_is_refused_by_its_name() {
    let place = Place::new();
    let refused = |builder: waxseal::audit::AuditTrailBuilder, name: &str| {
        let error = builder.start().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidOption);
        assert!(error.to_string().contains(name), "{error}");
    };
    let directory = || TrailDirectory::new(&place.path);
    refused(AuditTrail::builder(), "directory");
    refused(AuditTrail::builder().checkpoints_to(crate::ground::Kept::default()), "directory");
    refused(builder(&place).service(""), "service");
    refused(builder(&place).service("s".repeat(257)), "service");
    refused(builder(&place).access_summaries(LONG / 100), "access_summaries");
    refused(builder(&place).capacity(0), "capacity");
    refused(builder(&place).checkpoint_every(0, LONG), "checkpoint_every");
    refused(builder(&place).context_value("tenant", Disclosure::Hashed), "context_key");
    refused(builder(&place).other_context_values(Disclosure::Hashed), "context_key");
    refused(AuditTrail::builder().directory(directory().max_bytes(4095)), "max_bytes");
    refused(
        AuditTrail::builder().directory(directory().max_age(std::time::Duration::ZERO)),
        "max_age",
    );
    assert!(!place.path.exists());
}

/// All that must not be in a trail, and a control that is.
#[test]
fn no_secret_is_in_any_byte_of_a_trail() {
    let place = Place::new();
    let kek = ScriptedKek::new("kek").unwrap();
    let hash_key: Vec<u8> = (100..132).collect();
    let seed: [u8; 32] = std::array::from_fn(|n| u8::try_from(n).unwrap() ^ 0x5A);
    let trail = builder(&place)
        .context_key(AuditKey::from_slice(&hash_key).unwrap())
        .other_context_values(Disclosure::Hashed)
        .checkpoint_key(CheckpointKey::ed25519(&seed))
        .checkpoint_every(1, LONG)
        .start()
        .unwrap();
    let envelope =
        Envelope::builder().wrap_with(kek.clone()).observer(trail.clone()).build().unwrap();
    let (plaintext, aad) = (b"4111 1111 1111 1111", b"row seventeen");
    let sealed = block_on(envelope.encrypt(&context(), Aad::from(aad), plaintext)).unwrap();
    let dek = block_on(kek.local().unwrap(&context(), &entries_of(&sealed)[0])).unwrap();
    kek.fail_with(KekErrorClass::Denied);
    envelope.evict_all();
    block_on(envelope.decrypt(&context(), Aad::from(aad), &sealed)).unwrap_err();
    block_on(envelope.close());
    assert!(trail.close());

    let bytes: Vec<u8> =
        place.files().iter().flat_map(|file| std::fs::read(file).unwrap()).collect();
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let is_there = |what: &[u8]| {
        let base64 = data_encoding::BASE64.encode(what);
        let forms = [what, hex(what).as_bytes(), base64.trim_end_matches('=').as_bytes()]
            .map(<[u8]>::to_vec);
        forms.iter().any(|form| bytes.windows(form.len()).any(|part| part == form))
    };
    for secret in [dek.expose(), plaintext, aad, &hash_key, &seed, b"acme", &sealed[40..]] {
        assert!(!is_there(secret), "{secret:?}");
    }
    let dek_id = waxseal::inspect(&sealed).unwrap().dek_id;
    assert!(is_there(dek_id.as_bytes()) && is_there(b"tenant"), "the search finds what is there");
}

#[test]
fn text_from_elsewhere_stays_one_line_of_json() {
    let place = Place::new();
    let trail = builder(&place).service("c\"a\\r\nds\u{2028}").start().unwrap();
    let context =
        waxseal::EncryptionContext::new([("a\"b\\", "\u{202e}},\"hash\":\"00\"}")]).unwrap();
    let kek_id = KekId::new("vault:a\"},\n{\"metadata.sequence\":7").unwrap();
    let dek_id = waxseal::DekId::from_bytes([1; 32]);
    trail.event(&unwrapped(&dek_id, &context, &kek_id));
    assert!(trail.close());
    let records = place.records();
    assert_eq!(records.len(), 3);
    assert!(records[1].kek_id.as_ref().unwrap().contains("\\n"));
}

/// The longest context, the most KEKs, the longest ids, everything escaped.
#[test]
fn the_longest_record_is_a_line_that_verifies() {
    let place = Place::new();
    let trail = builder(&place).other_context_values(Disclosure::Clear).start().unwrap();
    let context =
        waxseal::EncryptionContext::new([("a", "\"".repeat(4096)), ("b", "\"".repeat(4080))]);
    let (context, dek_id) = (context.unwrap(), waxseal::DekId::from_bytes([1; 32]));
    let kek_ids: Vec<_> =
        (0..16).map(|n| KekId::new(format!("{n:x}{}", "\u{1}".repeat(511))).unwrap()).collect();
    trail.event(&Event::Made { dek_id: &dek_id, context: &context, kek_ids: &kek_ids });
    assert!(trail.close());
    let records = place.records();
    assert_eq!(records[1].dek_id, Some(dek_id.to_string()));
    assert!(records[1].message.is_some() || records[1].context.is_some());
}

/// Every event of the library, by what the page says of it.
fn every_event(observer: &dyn Observer) {
    let (context, kek_id) = (context(), KekId::new("local:test").unwrap());
    let (dek_id, kek_ids) = (waxseal::DekId::from_bytes([1; 32]), [kek_id.clone()]);
    let kind = ErrorKind::Unavailable;
    let (kek_version, request_id) = (Some("7"), Some("request-1"));
    let caller = &waxseal::Caller::builder().service("billing").build().unwrap();
    let (dek_id, context, kek_id, kek_ids) = (&dek_id, &context, &kek_id, &kek_ids[..]);
    for event in [
        Event::Made { dek_id, context, kek_ids },
        Event::Wrapped { dek_id, context, kek_id, kek_version, request_id },
        Event::Unwrapped { dek_id, context, kek_id, kek_version, request_id },
        Event::Configured {
            wrap_with: kek_ids,
            unwrap_with: kek_ids,
            options: &[("suite", "Aes256Gcm".to_owned())],
        },
        Event::Revoked { kek_id },
        Event::Reinstated { kek_id },
        Event::ShutDown,
        Event::Refreshed { dek_id, context },
        Event::RenewalFailed { dek_id, context, kind },
        Event::ServedStale { dek_id, context, kind },
        Event::Denied { dek_id: Some(dek_id), context },
        Event::Denied { dek_id: None, context },
        Event::DamagedRow { row_id: "00", store: "sqlite" },
        Event::Erased { context, store: "sqlite", keys: 3 },
        Event::StoreCalled {
            store: "sqlite",
            operation: waxseal::StoreOperation::Get,
            elapsed: LONG,
            kind: Some(kind),
            abandoned: false,
        },
        Event::StoreBreakerOpened { store: "sqlite" },
        Event::StoreBreakerClosed { store: "sqlite" },
        Event::Evicted { dek_id, context },
        Event::Wiped { dek_id, context },
        Event::Accessed { dek_id, context, access: Access::Decrypt, messages: 3, within: LONG },
        Event::AccessedBy {
            caller,
            dek_id,
            context,
            access: Access::Decrypt,
            messages: 2,
            within: LONG,
        },
        Event::AccessedByOthers { access: Access::Encrypt, messages: 1, within: LONG },
        Event::Called {
            kek_id,
            operation: Operation::Unwrap,
            elapsed: LONG,
            kind: Some(kind),
            abandoned: true,
            request_id,
        },
        Event::BreakerOpened { kek_id, target: Some("a") },
        Event::BreakerClosed { kek_id, target: None },
        Event::ObserverPanicked { observer: 1 },
        Event::StartedWithout { kek_id, kind },
    ] {
        observer.event(&event);
    }
}

/// The words in backquotes in the first column of the table below this heading.
fn documented(heading: &str) -> Vec<String> {
    let page = include_str!("../../docs/audit.md");
    let part = page.split(heading).nth(1).unwrap().split("\n## ").next().unwrap();
    let rows = part.lines().filter(|line| line.starts_with("| `"));
    let first = rows.map(|row| row.split('|').nth(1).unwrap());
    let words = first.flat_map(|cell| cell.split('`').skip(1).step_by(2));
    words.map(str::to_owned).collect()
}

#[test]
fn the_page_lists_every_activity_and_every_field() {
    let place = Place::new();
    let trail = builder(&place)
        .service("cards")
        .checkpoint_key(crate::ground::key())
        .checkpoint_every(3, LONG)
        .start()
        .unwrap();
    every_event(&trail);
    assert!(trail.close());
    let records = place.records();
    let known = documented("## What is recorded");
    for activity in activities(&records) {
        assert!(known.iter().any(|name| name == activity), "the page does not have {activity}");
    }
    // And in the source, where an activity cannot be caused here.
    let sources = [
        include_str!("../../src/observe/audit/draft.rs"),
        include_str!("../../src/observe/audit/ledger.rs"),
    ];
    let named: Vec<_> = sources
        .iter()
        .flat_map(|source| source.split("Record::of(\"").skip(1))
        .map(|rest| rest.split('"').next().unwrap())
        .collect();
    for name in &named {
        assert!(known.iter().any(|known| known == name), "the page does not have {name}");
    }
    for name in &known {
        let is_a_beginning = ["trail_resumed", "trail_opened"].contains(&&**name);
        let is_named = named.contains(&&**name) || activities(&records).contains(&&**name);
        let is_named = is_named || is_a_beginning;
        assert!(is_named, "the page has {name}, which nothing records");
    }
    let fields = documented("## The fields of a record");
    let record = include_str!("../../src/observe/audit/record.rs");
    let struct_of_record =
        record.split("pub struct Record {").nth(1).unwrap().split("\n}").next().unwrap();
    let renamed =
        struct_of_record.split("rename = \"").skip(1).map(|rest| rest.split('"').next().unwrap());
    for name in renamed.chain(["status", "count", "message", "hash"]) {
        assert!(fields.iter().any(|field| field == name), "the page does not have {name}");
    }
    assert_eq!(fields.len(), struct_of_record.matches("    pub ").count() + 1, "{fields:?}");
}

#[test]
fn every_record_has_a_uid_and_a_time_and_reads_back_as_it_was() {
    let place = Place::new();
    let trail = builder(&place).start().unwrap();
    every_event(&trail);
    assert!(trail.close());
    let records = place.records();
    let mut uids: Vec<_> = records.iter().map(|record| record.uid.clone()).collect();
    uids.dedup();
    assert_eq!(uids.len(), records.len());
    for (record, line) in records.iter().zip(place.lines(1)) {
        let again: Record = serde_json::from_str(&line).unwrap();
        assert_eq!(&again, record);
        assert!(record.time.ends_with('Z') && record.time.len() >= 20, "{}", record.time);
    }
}
