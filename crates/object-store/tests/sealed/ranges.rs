//! Any part of an object, against the plaintext.

use crate::version::SealedStore;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{GetOptions, GetRange, ObjectStore, ObjectStoreExt, PutPayload};
use proptest::prelude::*;

use super::ground::*;
use super::scripted::{Act, Scripted};

const LENGTHS: [u64; 9] = [0, 1, 4095, 4096, 4097, 8191, 8192, 8193, 50_000];

fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

fn range_of(len: u64) -> impl Strategy<Value = GetRange> {
    let end = len + 5000;
    prop_oneof![
        (0..=end, 0..=end).prop_map(|(a, b)| GetRange::Bounded(a.min(b)..a.max(b))),
        (0..=end).prop_map(GetRange::Offset),
        (0..=end).prop_map(GetRange::Suffix),
    ]
}

fn case() -> impl Strategy<Value = (u64, Vec<GetRange>, usize)> {
    prop::sample::select(&LENGTHS[..]).prop_flat_map(|len| {
        (Just(len), prop::collection::vec(range_of(len), 1..6), 1..20_000_usize)
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Every kind of range, cold and warm, with answers in any pieces.
    #[test]
    fn a_part_is_that_part_of_the_plaintext((len, ranges, pieces) in case()) {
        run(async {
            let (plain, scripted) = (InMemory::new(), Scripted::new(InMemory::new()));
            let (keys, path) = (keys(), Path::from("a/b"));
            let store = |coalesce| {
                let store = SealedStore::builder(scripted.clone(), keys.clone());
                store.chunk_size(4096).coalesce(coalesce).build().unwrap()
            };
            let (sealed, plaintext) = (store(0), plaintext(len));
            plain.put(&path, plaintext.clone().into()).await.unwrap();
            sealed.put(&path, plaintext.into()).await.unwrap();
            scripted.script(move |_, _| Act::Pieces(pieces));
            for range in &ranges {
                let options = GetOptions::new().with_range(Some(range.clone()));
                let expected = plain.get_opts(&path, options.clone()).await;
                match (sealed.get_opts(&path, options).await, expected) {
                    (Ok(got), Ok(expected)) => {
                        assert_eq!(got.range, expected.range, "{range}");
                        assert_eq!(got.meta.size, expected.meta.size);
                        let (got, expected) =
                            (got.bytes().await.unwrap(), expected.bytes().await.unwrap());
                        assert!(got == expected, "{range:?}");
                    }
                    (Err(_), Err(_)) => {}
                    (got, expected) => panic!("{range:?}: {got:?}, not {expected:?}"),
                }
            }
            for range in ranges.iter().cloned().map(Some).chain([None]) {
                let options = GetOptions::new().with_range(range.clone()).with_head(true);
                let expected = plain.get_opts(&path, options.clone()).await.map(|it| it.range);
                let got = sealed.get_opts(&path, options).await.map(|it| it.range);
                assert_eq!(got.ok(), expected.ok(), "the head, with {range:?}");
            }
            let bounded: Vec<_> = ranges
                .iter()
                .filter_map(|range| range.as_range(len).ok().filter(|it| !it.is_empty()))
                .collect();
            for coalesce in [0, 5000, u64::MAX] {
                let got = store(coalesce).get_ranges(&path, &bounded).await.unwrap();
                assert_eq!(got, plain.get_ranges(&path, &bounded).await.unwrap());
            }
        });
    }

    /// Parts of an upload of whatever lengths.
    #[test]
    fn an_upload_in_parts_is_the_same_object(lengths in prop::collection::vec(0..30_000_u64, 0..8)) {
        run(async {
            let (sealed, path) = (small(InMemory::new()), Path::from("a"));
            let plaintext = plaintext(lengths.iter().sum());
            let mut upload = sealed.put_multipart(&path).await.unwrap();
            let mut rest = &plaintext[..];
            for len in lengths {
                let (part, behind) = rest.split_at(len.try_into().unwrap());
                // Of several buffers.
                let (a, b) = part.split_at(part.len() / 3);
                let payload = PutPayload::from_iter([a.to_vec(), b.to_vec()].map(bytes::Bytes::from));
                upload.put_part(payload).await.unwrap();
                rest = behind;
            }
            upload.complete().await.unwrap();
            assert!(get(&sealed, &path).await.unwrap() == plaintext);
            let listed = sealed.head(&path).await.unwrap().size;
            assert_eq!(listed, plaintext.len() as u64);
        });
    }
}

#[tokio::test]
async fn lengths_in_lists_and_heads_are_those_of_the_plaintexts() {
    let sealed = small(InMemory::new());
    for len in LENGTHS {
        let path = Path::from(format!("folder/{len}"));
        sealed.put(&path, plaintext(len).into()).await.unwrap();
        assert_eq!(sealed.head(&path).await.unwrap().size, len);
        assert_eq!(sealed.get(&path).await.unwrap().meta.size, len);
        let object = sealed.inner().head(&path).await.unwrap().size;
        assert_eq!(object, HEAD + len + (len / CHUNK + 1) * 16);
        let listed = sealed.list_with_delimiter(Some(&Path::from("folder"))).await.unwrap();
        assert_eq!(listed.objects.iter().find(|it| it.location == path).unwrap().size, len);
    }
}
