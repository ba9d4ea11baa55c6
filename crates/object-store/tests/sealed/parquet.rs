//! A Parquet file, written and read through the store as query engines do: the footer, and then the
//! columns that are asked for.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

use bytes::{Buf, Bytes};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, WriteMultipart};
use parquet::column::reader::ColumnReader;
use parquet::data_type::Int64Type;
use parquet::errors::{ParquetError, Result};
use parquet::file::metadata::{ParquetMetaData, ParquetMetaDataReader};
use parquet::file::properties::WriterProperties;
use parquet::file::reader::{ChunkReader, FileReader, Length, SerializedFileReader};
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;

use super::ground::*;
use super::scripted::{Call, Scripted};

const COLUMNS: usize = 8;
const ROWS: usize = 20_000;
const GROUPS: usize = 3;

fn value(group: usize, column: usize, row: usize) -> i64 {
    let mixed = (group * COLUMNS + column) * ROWS + row;
    i64::try_from(mixed).unwrap().wrapping_mul(0x5DEE_CE66)
}

fn file() -> Vec<u8> {
    let columns: String = (0..COLUMNS).map(|n| format!("required int64 c{n}; ")).collect();
    let schema = Arc::new(parse_message_type(&format!("message m {{ {columns} }}")).unwrap());
    let properties = Arc::new(WriterProperties::builder().set_dictionary_enabled(false).build());
    let mut writer = SerializedFileWriter::new(Vec::new(), schema, properties).unwrap();
    for group in 0..GROUPS {
        let mut rows = writer.next_row_group().unwrap();
        for column in 0..COLUMNS {
            let values: Vec<_> = (0..ROWS).map(|row| value(group, column, row)).collect();
            let mut column = rows.next_column().unwrap().unwrap();
            column.typed::<Int64Type>().write_batch(&values, None, None).unwrap();
            column.close().unwrap();
        }
        rows.close().unwrap();
    }
    writer.into_inner().unwrap()
}

/// The parts of a file that were fetched. Anything else is an error.
struct Fetched {
    len: u64,
    parts: Vec<(u64, Bytes)>,
}

impl Length for Fetched {
    fn len(&self) -> u64 {
        self.len
    }
}

impl ChunkReader for Fetched {
    type T = bytes::buf::Reader<Bytes>;

    fn get_read(&self, start: u64) -> Result<Self::T> {
        let part = self.parts.iter().find_map(|(at, bytes)| {
            let within = usize::try_from(start.checked_sub(*at)?).unwrap();
            (within < bytes.len()).then(|| bytes.slice(within..))
        });
        part.map(Buf::reader).ok_or_else(|| ParquetError::General(format!("{start} is not there")))
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes> {
        let part = self.get_read(start)?.into_inner();
        let missing = || ParquetError::General(format!("{length} bytes at {start} are not there"));
        (part.len() >= length).then(|| part.slice(..length)).ok_or_else(missing)
    }
}

/// The chunks that the calls fetched.
fn chunks(calls: &[Call]) -> BTreeSet<u64> {
    let of = |call: &Call| {
        let Range { start, end } = call.range.clone().unwrap();
        (start.saturating_sub(HEAD) / SEALED_CHUNK)..(end - HEAD).div_ceil(SEALED_CHUNK)
    };
    calls.iter().flat_map(of).collect()
}

#[tokio::test]
async fn of_a_parquet_file_only_the_chunks_of_the_columns_asked_for_are_fetched() {
    let scripted = Scripted::new(InMemory::new());
    let sealed = builder(scripted.clone()).chunk_size(4096).coalesce(0).build().unwrap();
    let (path, file) = (Path::from("table/part-0.parquet"), file());
    let mut writer = WriteMultipart::new(sealed.put_multipart(&path).await.unwrap());
    writer.write(&file);
    writer.finish().await.unwrap();

    // The footer, as every reader finds it.
    let len = sealed.head(&path).await.unwrap().size;
    assert_eq!(len, file.len() as u64);
    let end = sealed.get_range(&path, len - 8..len).await.unwrap();
    assert_eq!(&end[4..], b"PAR1");
    let footer = len - 8 - u64::from(u32::from_le_bytes(end[..4].try_into().unwrap()));
    let footer_bytes = sealed.get_range(&path, footer..len).await.unwrap();
    let metadata: ParquetMetaData =
        ParquetMetaDataReader::decode_metadata(&footer_bytes[..footer_bytes.len() - 8]).unwrap();

    // Two columns of eight.
    let wanted = [1, 6];
    let ranges: Vec<Range<u64>> = metadata
        .row_groups()
        .iter()
        .flat_map(|group| wanted.map(|column| group.column(column).byte_range()))
        .map(|(start, len)| start..start + len)
        .collect();
    scripted.take_calls();
    let columns = sealed.get_ranges(&path, &ranges).await.unwrap();
    let calls = scripted.take_calls();
    let touched: BTreeSet<_> =
        ranges.iter().flat_map(|it| it.start / CHUNK..it.end.div_ceil(CHUNK)).collect();
    assert_eq!(chunks(&calls), touched);
    assert_eq!(calls.len(), GROUPS * wanted.len());
    let fetched: u64 =
        calls.iter().map(|call| call.range.clone().unwrap()).map(|it| it.end - it.start).sum();
    assert_eq!(fetched, touched.len() as u64 * SEALED_CHUNK);
    let asked: u64 = ranges.iter().map(|range| range.end - range.start).sum();
    assert!(
        fetched < asked + ranges.len() as u64 * 2 * SEALED_CHUNK && fetched < len / 3,
        "{fetched}"
    );

    // And they are what was written.
    let mut parts: Vec<_> = ranges.iter().map(|range| range.start).zip(columns).collect();
    parts.push((footer, footer_bytes));
    let reader = SerializedFileReader::new(Fetched { len, parts }).unwrap();
    for group in 0..GROUPS {
        let rows = reader.get_row_group(group).unwrap();
        for column in wanted {
            let ColumnReader::Int64ColumnReader(mut values) =
                rows.get_column_reader(column).unwrap()
            else {
                panic!("another type")
            };
            let mut read = Vec::new();
            while values.read_records(ROWS, None, None, &mut read).unwrap().0 > 0 {}
            let expected: Vec<_> = (0..ROWS).map(|row| value(group, column, row)).collect();
            assert!(read == expected, "group {group}, column {column}");
        }
        let other = rows.get_column_reader(0).and_then(|reader| match reader {
            ColumnReader::Int64ColumnReader(mut values) => {
                values.read_records(1, None, None, &mut Vec::new()).map(drop)
            }
            _ => Ok(()),
        });
        assert!(other.is_err(), "it was not fetched");
    }
}
