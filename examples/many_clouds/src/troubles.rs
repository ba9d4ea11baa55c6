//! Services are stopped, denied and rotated. A table shows what was felt.

use std::error::Error;
use std::time::Duration;

use waxseal::{Aad, ErrorKind};

use crate::clouds::{Cloud, Clouds, Each};
use crate::promises::Promises;
use crate::service::{CARD, Felt, ROW, Service, Timed, stale_service};

const READS: usize = 20;

type Outcome = Result<(), Box<dyn Error>>;

/// Shows everything that happens to the services.
pub(crate) async fn show(clouds: &Clouds<'_>, promises: &mut Promises) -> Outcome {
    println!(
        "One record, its DEK wrapped by five KEKs. Each row has a service that prefers the KEK"
    );
    println!(
        "of the first column for reading. It reads the record {READS} times with no DEK cached.\n"
    );
    head();
    all_is_well(clouds, promises).await?;
    for cloud in Cloud::ALL {
        stopped(clouds, promises, cloud).await?;
    }
    for cloud in Cloud::ALL {
        denied(clouds, promises, cloud).await?;
    }
    for cloud in Cloud::ALL {
        only_one_is_left(clouds, promises, cloud).await?;
    }
    none_is_left(clouds, promises).await?;
    for cloud in Cloud::ALL {
        rotated(clouds, promises, cloud).await?;
    }
    stale(clouds, promises).await
}

fn head() {
    let names = Cloud::ALL.map(|cloud| format!("{cloud:>12}")).join("");
    println!(
        "{:<12} {:<36} {:<28} {:<12} {:<12} {:<21} requests",
        "preferred",
        "what happens",
        "reads: failed, slowest",
        "answered by",
        "cached DEK",
        "a new DEK"
    );
    println!("{:<127}{names}", "");
}

fn row(preferred: Cloud, what: &str, felt: &Felt, new_dek: Option<Timed>, requests: &Each<usize>) {
    let reads = match felt.kind() {
        None => format!("0 of {}, {} ms", felt.reads.len(), felt.slowest().as_millis()),
        Some(kind) => format!(
            "{} of {} {}, {} ms",
            felt.failed(),
            felt.reads.len(),
            kind.as_str(),
            felt.slowest().as_millis()
        ),
    };
    let most = felt.answered.iter().max_by_key(|(_, times)| **times);
    let answered = most.map_or("nobody".to_owned(), |(cloud, _)| cloud.to_string());
    let new_dek = new_dek.map(|made| made.to_string()).unwrap_or_default();
    let requests: String = requests.iter().map(|count| format!("{count:>12}")).collect();
    println!(
        "{preferred:<12} {what:<36} {reads:<28} {answered:<12} {:<12} {new_dek:<21}{requests}",
        felt.cached
    );
}

/// The requests that the services counted since `before`.
fn since(clouds: &Clouds<'_>, before: Each<usize>) -> Result<Each<usize>, Box<dyn Error>> {
    let mut now = clouds.requests()?;
    now.iter_mut().zip(before).for_each(|(now, before)| *now = now.saturating_sub(before));
    Ok(now)
}

/// A cached DEK always serves and makes no call.
fn cached(promises: &mut Promises, what: &str, felt: &Felt) {
    let as_promised = felt.cached.outcome.is_ok() && felt.calls_of_cached == 0;
    promises.hold(as_promised, format!("{what}: a cached DEK serves without a call"));
}

fn reads_go_on(promises: &mut Promises, what: &str, felt: &Felt) {
    promises.hold(felt.failed() == 0, format!("{what}: no read fails, while one KEK is left"));
}

async fn all_is_well(clouds: &Clouds<'_>, promises: &mut Promises) -> Outcome {
    let service = Service::start(clouds, Cloud::Aws).await?;
    service.get_used_to(clouds, &[Cloud::Aws]).await?;
    let before = clouds.requests()?;
    let felt = service.feel(clouds, READS).await;
    let new_dek = service.make_dek("all is well").await?;
    let what = "nothing";
    row(Cloud::Aws, what, &felt, Some(new_dek), &since(clouds, before)?);
    reads_go_on(promises, what, &felt);
    cached(promises, what, &felt);
    promises.hold(new_dek.outcome.is_ok(), "nothing: a new DEK is made");
    Ok(())
}

async fn stopped(clouds: &Clouds<'_>, promises: &mut Promises, cloud: Cloud) -> Outcome {
    let service = Service::start(clouds, cloud).await?;
    service.get_used_to(clouds, &[cloud]).await?;
    let before = clouds.requests()?;
    clouds.stop(cloud);
    let felt = service.feel(clouds, READS).await;
    let new_dek = service.make_dek("stopped").await?;
    clouds.start_again(cloud);
    let what = format!("stopped: {}", cloud.outage());
    row(cloud, &what, &felt, Some(new_dek), &since(clouds, before)?);
    reads_go_on(promises, &what, &felt);
    cached(promises, &what, &felt);
    promises.hold(
        new_dek.outcome == Err(ErrorKind::Unavailable),
        format!("{cloud} {what}: a new DEK needs every KEK of wrap_with"),
    );
    let is_back = service.comes_back(clouds, cloud).await;
    promises.hold(is_back, format!("{cloud} {what}: it is preferred again when it is back"));
    Ok(())
}

async fn denied(clouds: &Clouds<'_>, promises: &mut Promises, cloud: Cloud) -> Outcome {
    let service = Service::start(clouds, cloud).await?;
    service.get_used_to(clouds, &[cloud]).await?;
    let before = clouds.requests()?;
    clouds.deny(cloud).await;
    let felt = service.feel(clouds, READS).await;
    let new_dek = service.make_dek("denied").await?;
    let requests = since(clouds, before)?;
    clouds.permit(cloud).await;
    let what = format!("denied: {}", cloud.denial());
    row(cloud, &what, &felt, Some(new_dek), &requests);
    reads_go_on(promises, &what, &felt);
    cached(promises, &what, &felt);
    promises.hold(
        new_dek.outcome == Err(ErrorKind::Denied),
        format!("{cloud} {what}: a new DEK needs every KEK of wrap_with"),
    );
    promises.hold(
        !felt.answered.contains_key(&cloud),
        format!("{cloud} {what}: a denied KEK unwraps nothing"),
    );
    let is_back = service.comes_back(clouds, cloud).await;
    promises.hold(is_back, format!("{cloud} {what}: it is preferred again when it is permitted"));
    Ok(())
}

async fn only_one_is_left(clouds: &Clouds<'_>, promises: &mut Promises, left: Cloud) -> Outcome {
    let others = || Cloud::ALL.into_iter().filter(move |cloud| *cloud != left);
    let preferred = others().next().unwrap_or(left);
    let service = Service::start(clouds, preferred).await?;
    service.get_used_to(clouds, &Cloud::ALL).await?;
    let before = clouds.requests()?;
    others().for_each(|cloud| clouds.stop(cloud));
    let felt = service.feel(clouds, READS).await;
    others().for_each(|cloud| clouds.start_again(cloud));
    let what = format!("stopped: all but {left}");
    row(preferred, &what, &felt, None, &since(clouds, before)?);
    reads_go_on(promises, &what, &felt);
    cached(promises, &what, &felt);
    let by_it = felt.answered.keys().all(|cloud| *cloud == left);
    promises.hold(by_it, format!("{what}: it answers every read"));
    let is_back = service.comes_back(clouds, preferred).await;
    promises.hold(is_back, format!("{what}: {preferred} is preferred again when it is back"));
    Ok(())
}

async fn none_is_left(clouds: &Clouds<'_>, promises: &mut Promises) -> Outcome {
    for (what, kind) in
        [("stopped: all", ErrorKind::Unavailable), ("denied: all", ErrorKind::Denied)]
    {
        let service = Service::start(clouds, Cloud::Aws).await?;
        service.get_used_to(clouds, &Cloud::ALL).await?;
        let before = clouds.requests()?;
        for cloud in Cloud::ALL {
            match kind {
                ErrorKind::Denied => clouds.deny(cloud).await,
                _ => clouds.stop(cloud),
            }
        }
        let felt = service.feel(clouds, 1).await;
        for cloud in Cloud::ALL {
            match kind {
                ErrorKind::Denied => clouds.permit(cloud).await,
                _ => clouds.start_again(cloud),
            }
        }
        row(Cloud::Aws, what, &felt, None, &since(clouds, before)?);
        cached(promises, what, &felt);
        let fail = felt.failed() == felt.reads.len() && felt.kind() == Some(kind);
        promises.hold(fail, format!("{what}: reads without a cached DEK fail as {kind:?}"));
        let is_back = service.comes_back(clouds, Cloud::Aws).await;
        promises.hold(is_back, format!("{what}: the service recovers by itself"));
    }
    Ok(())
}

async fn rotated(clouds: &Clouds<'_>, promises: &mut Promises, cloud: Cloud) -> Outcome {
    let mut service = Service::start(clouds, cloud).await?;
    service.get_used_to(clouds, &[cloud]).await?;
    service.make_dek("before").await?;
    let old = service.versions(clouds, &[cloud]);
    let before = clouds.requests()?;
    clouds.rotate(cloud).await;
    let felt = service.feel(clouds, READS).await;
    let new_dek = service.make_dek("rotated").await?;
    let what = "rotated: a new version wraps";
    row(cloud, what, &felt, Some(new_dek), &since(clouds, before)?);
    reads_go_on(promises, what, &felt);
    cached(promises, what, &felt);
    promises.hold(new_dek.outcome.is_ok(), format!("{cloud} {what}: a new DEK is made"));
    let is_noticed = service.notices(clouds, &[cloud], &old).await?;
    promises.hold(is_noticed, format!("{cloud} {what}: the new version is noticed"));
    let new = service.versions(clouds, &[cloud]);
    let needed_one = service.needs_rewrap()?;
    promises.hold(needed_one, format!("{cloud} {what}: the record needs a rewrap"));
    service.rewrap().await?;
    let needs_one = service.needs_rewrap()?;
    promises.hold(!needs_one, format!("{cloud} {what}: a rewrapped record needs no other rewrap"));
    let after = service.feel(clouds, 1).await;
    promises.hold(after.failed() == 0, format!("{cloud} {what}: the rewrapped record opens"));
    // Versions of AWS KMS and Azure are long.
    let short = |versions: Vec<Option<String>>| {
        let version = versions.into_iter().flatten().next();
        version.map_or("not told".to_owned(), |version| version.chars().take(8).collect())
    };
    let yes = |yes| if yes { "yes" } else { "no" };
    println!(
        "{:<12}   version {} -> {}. The record needs a rewrap: {}, and after one: {}",
        "",
        short(old),
        short(new),
        yes(needed_one),
        yes(needs_one)
    );
    Ok(())
}

/// Past `max_age`, in an outage of all, within the grace.
async fn stale(clouds: &Clouds<'_>, promises: &mut Promises) -> Outcome {
    let (envelope, context, record) = stale_service(clouds).await?;
    Cloud::ALL.into_iter().for_each(|cloud| clouds.stop(cloud));
    tokio::time::sleep(Duration::from_secs(3)).await;
    let read = envelope.decrypt(&context, Aad::from(ROW), &record).await;
    let is_served = read.as_ref().is_ok_and(|plaintext| &**plaintext == CARD);
    let times = envelope.statistics().served_stale;
    Cloud::ALL.into_iter().for_each(|cloud| clouds.start_again(cloud));
    println!(
        "\nAll stopped, and the DEK past its max_age of 2 s, with stale_if_error_reading: {}, {times} served stale",
        read.map_or_else(|error| error.kind().as_str().to_owned(), |_| "read".to_owned()),
    );
    promises.hold(is_served && times > 0, "all stopped: a DEK within its grace is served stale");
    Ok(())
}
