//! Seals and opens a message under a KEK in AWS KMS.
//!
//! `cargo run -p waxseal-aws-kms --example aws_kms -- KEY` takes a key of yours by ARN, id or
//! alias, with the credentials and the Region that the AWS SDK finds: it makes one `Encrypt`, two
//! `Decrypt` (one of which is refused) and a `DescribeKey`. Without KEY it starts the KMS stand-in
//! of the tests in this process, which is discarded at the end.

use std::error::Error;
use waxseal_testing::kms_front;

use kms_front::KmsFront;
use waxseal::{Aad, EncryptionContext, Envelope, inspect};
use waxseal_aws_kms::AwsKmsKek;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let (_front, kek) = match std::env::args().nth(1) {
        Some(key) => (None, AwsKmsKek::builder(key).build().await?),
        None => {
            let front = KmsFront::start();
            let (login, arn) = (front.admin(), front.create_key("eu-west-1"));
            println!("a throw-away stand-in for AWS KMS listens at {}", front.url());
            let kek =
                AwsKmsKek::builder(arn).client(front.client("eu-west-1", &login)).build().await?;
            (Some(front), kek)
        }
    };
    let key = kek.read_key().await?;
    println!("{} is in state {}", key.arn, key.state);

    let envelope = Envelope::builder().wrap_with(kek.clone()).build()?;
    let context = EncryptionContext::new([("tenant", "alice"), ("table", "cards")])?;
    let sealed = envelope.encrypt(&context, Aad::from(b"row 17"), b"4111 1111 1111 1111").await?;
    println!("sealed {} bytes, {:?}", sealed.len(), inspect(&sealed)?.keks);

    // Another process would have nothing cached.
    let reader = Envelope::builder().unwrap_with(kek).build()?;
    let opened = reader.decrypt(&context, Aad::from(b"row 17"), &sealed).await?;
    println!("opened {:?}", String::from_utf8_lossy(&opened));

    match reader
        .decrypt(
            &EncryptionContext::new([("tenant", "bob"), ("table", "cards")])?,
            Aad::from(b"row 17"),
            &sealed,
        )
        .await
    {
        Err(error) => println!("as another tenant: {error}"),
        Ok(_) => return Err("another tenant opened it".into()),
    }
    println!("needs a rewrap: {}", envelope.needs_rewrap(&sealed)?);
    Ok(())
}
