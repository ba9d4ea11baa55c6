//! A KEK is added and another retired by rewraps. Each costs what the services count.

use std::error::Error;

use waxseal::{Aad, CallPolicy, EncryptionContext, Envelope, EnvelopeBuilder, inspect};

use crate::clouds::{Cloud, Clouds, Each};
use crate::promises::Promises;
use crate::service::{CARD, ROW, Service};

/// Records of as many tenants, and so of as many DEKs.
const RECORDS: usize = 10;

struct Table<'c> {
    clouds: &'c Clouds<'c>,
    rows: Vec<(EncryptionContext, Vec<u8>)>,
}

/// Shows how a KEK is added and retired.
pub(crate) async fn show(
    clouds: &Clouds<'_>,
    promises: &mut Promises,
) -> Result<(), Box<dyn Error>> {
    println!(
        "\n{RECORDS} records of as many DEKs, moved by rewrap_all. No payload byte changes.\n"
    );
    let four = [Cloud::Aws, Cloud::Google, Cloud::Azure, Cloud::Hsm];
    let kept = [Cloud::Google, Cloud::Azure, Cloud::Vault, Cloud::Hsm];
    let mut table = Table::sealed(clouds, &four).await?;
    table.show("sealed", &four, promises)?;
    rotate(clouds, &four, promises).await?;

    let added = "the keys have been rotated, and OpenBao is added";
    table.rewrap(wrapping(clouds, &Cloud::ALL), added, promises).await?;
    table.show("now", &Cloud::ALL, promises)?;
    table.opens_by(&[Cloud::Vault], "by the new KEK alone", promises).await?;

    let retiring = wrapping(clouds, &kept).unwrap_with(clouds.kek(Cloud::Aws).clone());
    table.rewrap(retiring, "AWS KMS is retired", promises).await?;
    table.show("now", &kept, promises)?;
    clouds.delete_aws_key();
    table.opens_by(&kept, "with the key in AWS KMS deleted", promises).await
}

/// Rotates these keys, and waits until their providers know it.
async fn rotate(
    clouds: &Clouds<'_>,
    keys: &[Cloud],
    promises: &mut Promises,
) -> Result<(), Box<dyn Error>> {
    let service = Service::start(clouds, Cloud::Aws).await?;
    service.make_dek("before all rotations").await?;
    let old = service.versions(clouds, keys);
    for cloud in keys {
        clouds.rotate(*cloud).await;
    }
    promises.hold(service.notices(clouds, keys, &old).await?, "all keys: rotations are noticed");
    Ok(())
}

fn wrapping(clouds: &Clouds<'_>, by: &[Cloud]) -> EnvelopeBuilder {
    by.iter()
        .fold(Envelope::builder(), |builder, cloud| builder.wrap_with(clouds.kek(*cloud).clone()))
}

impl<'c> Table<'c> {
    async fn sealed(clouds: &'c Clouds<'c>, by: &[Cloud]) -> Result<Self, Box<dyn Error>> {
        let writer = wrapping(clouds, by).build()?;
        let mut rows = Vec::new();
        for n in 0..RECORDS {
            let context = EncryptionContext::new([("tenant", format!("tenant {n}"))])?;
            let sealed = writer.encrypt(&context, Aad::from(ROW), CARD).await?;
            rows.push((context, sealed));
        }
        Ok(Self { clouds, rows })
    }

    /// Shows the entries of the first record, and checks those of all.
    fn show(
        &self,
        when: &str,
        expected: &[Cloud],
        promises: &mut Promises,
    ) -> Result<(), Box<dyn Error>> {
        for (n, (_, sealed)) in self.rows.iter().enumerate() {
            let entries = inspect(sealed)?.keks;
            let mut clouds: Vec<_> =
                entries.iter().filter_map(|entry| self.clouds.of(&entry.kek_id)).collect();
            clouds.sort();
            promises.hold(clouds == expected, format!("{when}: the entries of record {n}"));
            if n > 0 {
                continue;
            }
            println!("  {when}: {} bytes, {} entries", sealed.len(), entries.len());
            for entry in entries {
                let cloud = self.clouds.of(&entry.kek_id);
                let cloud = cloud.map_or_else(|| "?".to_owned(), |cloud| cloud.to_string());
                println!("    {cloud:<12} {:>4} bytes  {}", entry.wrapped_len, entry.kek_id);
            }
        }
        Ok(())
    }

    async fn rewrap(
        &mut self,
        by: EnvelopeBuilder,
        what: &str,
        promises: &mut Promises,
    ) -> Result<(), Box<dyn Error>> {
        // A hedged request that nobody waits for is counted here, and may never arrive there.
        let envelope = by.call_policy(CallPolicy::default().hedge_percentile(100)).build()?;
        let before = self.clouds.requests()?;
        let messages = self.rows.iter().map(|(context, sealed)| (context, &**sealed));
        let rewrapped = envelope.rewrap_all(messages).await;
        let mut requests = self.clouds.requests()?;
        requests.iter_mut().zip(before).for_each(|(now, before)| *now = now.saturating_sub(before));
        for ((_, row), rewrapped) in self.rows.iter_mut().zip(rewrapped) {
            *row = rewrapped?;
        }
        println!("\n  {what}: requests of rewrap_all, as each service counts them");
        let counted = self.counted(&envelope);
        for ((cloud, requests), counted) in Cloud::ALL.into_iter().zip(requests).zip(counted) {
            let way = match self.clouds.kek(cloud).rewraps_in_service() {
                true => "has a rewrap of its own",
                false => "a rewrap is an unwrap and a wrap",
            };
            println!("    {cloud:<12} {requests:>4}  {way}");
            promises.hold(
                requests == counted,
                format!("{what}: {cloud} got {requests} requests, the statistics say {counted}"),
            );
        }
        println!();
        Ok(())
    }

    /// The calls that the library has counted.
    fn counted(&self, envelope: &Envelope) -> Each<usize> {
        let statistics = envelope.statistics();
        Cloud::ALL.map(|cloud| {
            let of_cloud =
                statistics.keks.iter().find(|kek| kek.kek_id == *self.clouds.kek(cloud).id());
            of_cloud.map_or(0, |kek| usize::try_from(kek.calls).unwrap_or(usize::MAX))
        })
    }

    /// Every record opens in a process that has these KEKs only.
    async fn opens_by(
        &self,
        keks: &[Cloud],
        what: &str,
        promises: &mut Promises,
    ) -> Result<(), Box<dyn Error>> {
        let reader = keks.iter().fold(Envelope::builder(), |builder, cloud| {
            builder.unwrap_with(self.clouds.kek(*cloud).clone())
        });
        let reader = reader.build()?;
        let mut opened = 0;
        for (context, sealed) in &self.rows {
            let read = reader.decrypt(context, Aad::from(ROW), sealed).await;
            opened += usize::from(read.is_ok_and(|plaintext| &*plaintext == CARD));
        }
        println!("  {opened} of {RECORDS} open {what}");
        promises.hold(opened == RECORDS, format!("every record opens {what}"));
        Ok(())
    }
}
