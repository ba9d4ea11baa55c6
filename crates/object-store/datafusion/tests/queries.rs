//! A table in Parquet files, written and queried by DataFusion through the encrypted store: the
//! results are those of the same files in plain, and of each file only what the query touches is
//! fetched.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use datafusion::arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use datafusion::arrow::datatypes::DataType;
use datafusion::arrow::util::pretty::pretty_format_batches;
use datafusion::config::TableParquetOptions;
use datafusion::dataframe::DataFrameWriteOptions;
use datafusion::parquet::file::metadata::{ParquetMetaData, ParquetMetaDataReader};
use datafusion::prelude::{
    DataFrame, Expr, ParquetReadOptions, SessionConfig, SessionContext, col, lit,
};
use futures_util::TryStreamExt;
use futures_util::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetRange, GetResult, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, ObjectStoreExt, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use url::Url;
use waxseal::kek::local::LocalKek;
use waxseal::policy::{BoxFuture, Decision, Policy, PolicyOptions, Question};
use waxseal::{Caller, EncryptionContext, Envelope};
use waxseal_object_store::v0_13::{ObjectKeys, SealedStore};

/// Of the encrypted objects.
const HEAD: u64 = 1024;
const CHUNK: u64 = 4096;
const SEALED_CHUNK: u64 = CHUNK + 16;

const ROWS: i64 = 30_000;
const REGIONS: [&str; 3] = ["east", "north", "west"];

/// What is asked of a store: paths and ranges, of encrypted bytes.
#[derive(Clone, Debug, Default)]
struct Counted {
    inner: Arc<InMemory>,
    asked: Arc<Mutex<Vec<(Path, Range<u64>)>>>,
}

impl Counted {
    fn take(&self) -> Vec<(Path, Range<u64>)> {
        std::mem::take(&mut *self.asked.lock().unwrap())
    }
}

impl fmt::Display for Counted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Counted")
    }
}

#[async_trait]
impl ObjectStore for Counted {
    async fn put_opts(
        &self,
        path: &Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> Result<PutResult> {
        self.inner.put_opts(path, payload, options).await
    }

    async fn put_multipart_opts(
        &self,
        path: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(path, options).await
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> Result<GetResult> {
        let range = match &options.range {
            Some(GetRange::Bounded(range)) => range.clone(),
            _ => 0..u64::MAX,
        };
        self.asked.lock().unwrap().push((path.clone(), range));
        self.inner.get_opts(path, options).await
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

fn rows() -> RecordBatch {
    let number = |row: i64| row.wrapping_mul(0x5DEE_CE66_D1CE_4E5B).rotate_left(17) >> 8;
    let integers = |of: &dyn Fn(i64) -> i64| -> ArrayRef {
        Arc::new((0..ROWS).map(of).collect::<Int64Array>())
    };
    let texts = |of: &dyn Fn(i64) -> String| -> ArrayRef {
        Arc::new((0..ROWS).map(|row| Some(of(row))).collect::<StringArray>())
    };
    let region = |row: i64| REGIONS[usize::try_from(row % 3).unwrap()].to_owned();
    RecordBatch::try_from_iter([
        ("region", texts(&region)),
        ("id", integers(&|row| row)),
        ("customer", texts(&|row| format!("{:016x}", number(row + 1)))),
        ("amount", integers(&|row| number(row).rem_euclid(100_000))),
        ("note", texts(&|row| format!("{:016x}{:016x}", number(row + 2), number(row * 3)))),
        ("balance", integers(&|row| number(row + 4))),
    ])
    .unwrap()
}

fn envelope() -> waxseal::EnvelopeBuilder {
    Envelope::builder().wrap_with(LocalKek::in_memory("tables").unwrap())
}

fn sealed<S: ObjectStore>(store: S, envelope: Envelope) -> SealedStore<S> {
    let context = EncryptionContext::new([("table", "sales")]).unwrap();
    let store = SealedStore::builder(store, ObjectKeys::new(envelope, context));
    // A chunk for itself where it is not touched.
    store.chunk_size(4096).coalesce(0).build().unwrap()
}

/// A session of its own, so that nothing is in memory from another query.
fn session(store: Arc<dyn ObjectStore>) -> SessionContext {
    let mut config = SessionConfig::new().with_target_partitions(2);
    // No guess of the footer's length, which would fetch data with it.
    config.options_mut().execution.parquet.metadata_size_hint = None;
    let session = SessionContext::new_with_config(config);
    session.register_object_store(&Url::parse("tables://acme").unwrap(), store);
    session
}

const TABLE: &str = "tables://acme/sales/";

async fn write(store: Arc<dyn ObjectStore>) {
    let session = session(store);
    let frame = session.read_batch(rows()).unwrap();
    let options = DataFrameWriteOptions::new().with_partition_by(vec!["region".to_owned()]);
    let mut parquet = TableParquetOptions::default();
    parquet.global.max_row_group_size = 4_000;
    parquet.global.dictionary_enabled = Some(false);
    frame.write_parquet(TABLE, options, Some(parquet)).await.unwrap();
}

async fn table(session: &SessionContext) -> datafusion::error::Result<DataFrame> {
    let region = vec![("region".to_owned(), DataType::Utf8)];
    let options = ParquetReadOptions::default().table_partition_cols(region);
    session.read_parquet(TABLE, options).await
}

/// The query: two columns of one partition, of which one is filtered by.
fn query(frame: DataFrame) -> DataFrame {
    let large: Expr = col("region").eq(lit("north")).and(col("amount").gt(lit(50_000_i64)));
    let found = frame.filter(large).unwrap().select(vec![col("id")]).unwrap();
    found.sort(vec![col("id").sort(true, false)]).unwrap()
}

async fn text(frame: DataFrame) -> String {
    pretty_format_batches(&frame.collect().await.unwrap()).unwrap().to_string()
}

/// The files of the table, in plain.
async fn files(store: &SealedStore<Counted>) -> BTreeMap<Path, (Bytes, ParquetMetaData)> {
    let mut files = BTreeMap::new();
    let listed: Vec<_> = store.list(None).try_collect().await.unwrap();
    for meta in listed {
        let file = store.get(&meta.location).await.unwrap().bytes().await.unwrap();
        assert_eq!(file.len() as u64, meta.size);
        let metadata = ParquetMetaDataReader::new().parse_and_finish(&file).unwrap();
        files.insert(meta.location, (file, metadata));
    }
    files
}

fn chunks(plaintext: &Range<u64>) -> Range<u64> {
    plaintext.start / CHUNK..plaintext.end.div_ceil(CHUNK)
}

/// The chunks that requests fetched, by file. Heads are apart.
fn fetched(asked: &[(Path, Range<u64>)]) -> BTreeMap<Path, BTreeSet<u64>> {
    let mut fetched: BTreeMap<Path, BTreeSet<u64>> = BTreeMap::new();
    for (path, range) in asked {
        let of_file = fetched.entry(path.clone()).or_default();
        if *range != (0..HEAD) {
            assert!(range.start >= HEAD && (range.start - HEAD) % SEALED_CHUNK == 0, "{range:?}");
            let end = (range.end - HEAD).div_ceil(SEALED_CHUNK);
            of_file.extend((range.start - HEAD) / SEALED_CHUNK..end);
        }
    }
    fetched
}

/// Where the columns of these names are.
fn columns<'m>(
    metadata: &'m ParquetMetaData,
    names: &'m [&str],
) -> impl Iterator<Item = Range<u64>> + 'm {
    let groups = metadata.row_groups().iter();
    let all = groups.flat_map(|group| group.columns());
    all.filter(|column| names.contains(&column.column_descr().name())).map(|column| {
        let (start, len) = column.byte_range();
        start..start + len
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_query_fetches_the_chunks_of_the_columns_it_touches_and_gives_what_the_plain_files_give()
{
    let counted = Counted::default();
    let store = sealed(counted.clone(), envelope().build().unwrap());
    write(Arc::new(store.clone())).await;
    let plain: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    write(plain.clone()).await;

    // What is stored is encrypted, and all of it is there.
    let files = files(&store).await;
    let stored: Vec<_> = counted.inner.list(None).try_collect().await.unwrap();
    assert!(files.len() >= REGIONS.len() && stored.len() == files.len(), "{files:?}");
    for meta in &stored {
        let bytes = counted.inner.get(&meta.location).await.unwrap().bytes().await.unwrap();
        assert!(!bytes.windows(4).any(|four| four == b"PAR1"), "{}", meta.location);
    }

    counted.take();
    let session_of_sealed = session(Arc::new(store));
    let frame = table(&session_of_sealed).await.unwrap();
    let planned = fetched(&counted.take());
    let found = text(query(frame)).await;
    let asked = counted.take();
    let queried = fetched(&asked);

    // The results are those of the plain files, and of the rows themselves.
    assert_eq!(found, text(query(table(&session(plain)).await.unwrap())).await);
    let expected = session(Arc::new(InMemory::new())).read_batch(rows()).unwrap();
    assert_eq!(found, text(query(expected)).await);
    assert!(found.lines().count() > 4_000, "{}", found.lines().count());

    let mut bytes = (0, 0, 0);
    for (path, (file, metadata)) in &files {
        let is_asked = path.as_ref().contains("region=north");
        let len = file.len() as u64;
        let data_end = metadata.row_groups().iter().flat_map(|group| group.columns());
        let data_end = data_end.map(|column| column.byte_range()).map(|(at, len)| at + len).max();
        // The footer, and the indexes of pages before it.
        let footer: BTreeSet<u64> = chunks(&(data_end.unwrap()..len)).collect();
        let touched: BTreeSet<u64> =
            columns(metadata, &["id", "amount"]).flat_map(|range| chunks(&range)).collect();
        let others: BTreeSet<u64> = columns(metadata, &["customer", "note", "balance"])
            .flat_map(|range| chunks(&range))
            .filter(|chunk| !touched.contains(chunk) && !footer.contains(chunk))
            .collect();
        assert!(metadata.num_row_groups() >= 3 && others.len() > 2 * touched.len());

        // For the schema, every footer.
        let of_plan = &planned[path];
        assert!(!of_plan.is_empty() && of_plan.is_subset(&footer), "{path}: {of_plan:?}");
        let Some(of_query) = queried.get(path) else {
            assert!(!is_asked);
            continue;
        };
        assert!(is_asked, "{path} is of another partition");
        assert!(of_query.is_disjoint(&others), "{path}");
        assert!(of_query.is_subset(&(&touched | &footer)) && touched.is_subset(of_query), "{path}");
        bytes.1 += touched.len() as u64 * SEALED_CHUNK;
        bytes.2 += footer.len() as u64 * SEALED_CHUNK + HEAD;
    }
    // Counted at the store: each chunk of the columns once, and nothing else but heads and footers.
    bytes.0 = asked.iter().map(|(_, range)| range.end - range.start).sum::<u64>();
    let all: u64 = stored.iter().map(|meta| meta.size).sum();
    println!("{} bytes for the query, {} of them columns; the table has {all}", bytes.0, bytes.1);
    assert!(bytes.0 >= bytes.1 && bytes.0 <= bytes.1 + 3 * bytes.2, "{bytes:?}");
    assert!(bytes.0 < all / 6, "{bytes:?} of {all}");
}

/// Whoever may see the table.
#[derive(Debug)]
struct Analysts;

impl Policy for Analysts {
    fn decide<'a>(
        &'a self,
        question: &'a Question<'a>,
    ) -> BoxFuture<'a, std::result::Result<Decision, waxseal::Error>> {
        let decision = match question.caller.and_then(Caller::service) {
            Some("analyst" | "loader") => Decision::allow(),
            _ => Decision::deny(["only analysts"]),
        };
        Box::pin(async { Ok(decision) })
    }
}

/// DataFusion names no caller. The store that it is given does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_acts_for_the_caller_of_its_store() {
    let policy = envelope().policy(Analysts, PolicyOptions::default());
    let store = sealed(Counted::default(), policy.build().unwrap());
    let acting = |service: &str| -> Arc<dyn ObjectStore> {
        let caller = Caller::builder().service(service).build().unwrap();
        Arc::new(store.acting_for(&caller))
    };
    write(acting("loader")).await;
    let found = text(query(table(&session(acting("analyst"))).await.unwrap())).await;
    assert!(found.lines().count() > 4_000);
    for store in [acting("intern"), Arc::new(store.clone())] {
        let error = table(&session(store)).await.unwrap_err().to_string();
        assert!(error.contains("only analysts") || error.contains("policy"), "{error}");
    }
}
