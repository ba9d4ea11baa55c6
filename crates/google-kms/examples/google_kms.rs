//! Seals and opens a message under a KEK in Google Cloud KMS, and moves it after a rotation.
//!
//! `cargo run -p waxseal-google-kms --example google_kms -- KEY` takes a key of yours by its
//! resource name, with application default credentials: it makes two `encrypt`, four `decrypt` (one
//! of which is refused) and a `get`. Without KEY it starts the stand-in of the tests in this
//! process, which is discarded at the end.

use std::error::Error;

use waxseal::{Aad, EncryptionContext, Envelope, inspect};
use waxseal_google_kms::GoogleKmsKek;
use waxseal_testing::google::{GoogleFront, Protection};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let (front, kek) = match std::env::args().nth(1) {
        Some(key) => (None, GoogleKmsKek::builder(key).build().await?),
        None => {
            let front = GoogleFront::start();
            println!("a throw-away stand-in for Cloud KMS listens at {}", front.url());
            let key = front.create_key("orders", Protection::Hsm);
            let builder =
                GoogleKmsKek::builder(key).endpoint(front.url()).metadata_server_at(front.url());
            let kek = builder.build().await?;
            (Some(front), kek)
        }
    };
    let key = kek.read_key().await?;
    println!(
        "primary version {:?} is {:?}, protection level {}",
        key.primary_version, key.state, key.protection_level
    );

    let envelope = Envelope::builder().wrap_with(kek.clone()).build()?;
    let context = EncryptionContext::new([("tenant", "alice"), ("table", "cards")])?;
    let sealed = envelope.encrypt(&context, Aad::from(b"row 17"), b"4111 1111 1111 1111").await?;
    println!("sealed {} bytes, {:?}", sealed.len(), inspect(&sealed)?.keks);

    // Another process would have nothing cached.
    let reader = Envelope::builder().unwrap_with(kek.clone()).build()?;
    let opened = reader.decrypt(&context, Aad::from(b"row 17"), &sealed).await?;
    println!("opened {:?}", String::from_utf8_lossy(&opened));

    let other = EncryptionContext::new([("tenant", "bob"), ("table", "cards")])?;
    match reader.decrypt(&other, Aad::from(b"row 17"), &sealed).await {
        Err(error) => println!("as another tenant: {error}"),
        Ok(_) => return Err("another tenant opened it".into()),
    }

    println!("needs a rewrap: {}", envelope.needs_rewrap(&sealed)?);
    if let Some(front) = &front {
        front.world().key(&key.name).rotate();
        kek.read_key().await?;
        println!("after a rotation it needs a rewrap: {}", envelope.needs_rewrap(&sealed)?);
    }
    let moved = envelope.rewrap(&context, &sealed).await?;
    let opened = reader.decrypt(&context, Aad::from(b"row 17"), &moved).await?;
    println!("opened {:?} after a rewrap", String::from_utf8_lossy(&opened));
    Ok(())
}
