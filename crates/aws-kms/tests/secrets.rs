//! Where DEKs are not to be found: in the SDK's logs, and in the memory of a process that is
//! through with them.
#![cfg(target_os = "linux")]
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::io;
use std::sync::{Arc, Mutex};
use waxseal_testing::{kms_front, support};

use aws_sdk_kms::config::StalledStreamProtectionConfig;
use data_encoding::{BASE64, HEXLOWER};
use kms_front::KmsFront;
use support::context;
use tracing_subscriber::fmt::MakeWriter;
use waxseal::kek::{KekProvider, UnwrappedDek};
use waxseal_aws_kms::AwsKmsKek;

const REGION: &str = "eu-west-1";

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

impl Log {
    /// The ways in which the DEK stands there.
    fn shows(&self, dek: &[u8]) -> Vec<&'static str> {
        let text = String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned();
        let list = format!("{dek:?}");
        let forms = [
            ("base64", BASE64.encode(dek).trim_end_matches('=').to_owned()),
            ("hexadecimal", HEXLOWER.encode(dek)),
            ("list", list.trim_matches(['[', ']']).to_owned()),
            ("escaped", dek.escape_ascii().to_string()),
        ];
        forms.into_iter().filter(|(_, form)| text.contains(form)).map(|(name, _)| name).collect()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_sdk_s_logs_at_the_level_trace_hold_no_dek() {
    let log = Log::default();
    let subscriber =
        tracing_subscriber::fmt().with_max_level(tracing::Level::TRACE).with_ansi(false);
    tracing::subscriber::set_global_default(subscriber.with_writer(log.clone()).finish()).unwrap();
    let front = KmsFront::start();
    let (login, arn) = (front.admin(), front.create_key(REGION));
    let client = front.client(REGION, &login);

    // The SDK hides the bodies of requests behind its protection against stalled streams too:
    // without it.
    let unprotected = StalledStreamProtectionConfig::disabled();
    let config = client.config().to_builder().stalled_stream_protection(unprotected).build();
    let client = aws_sdk_kms::Client::from_conf(config);
    // The control: what is in the log is found.
    let control = kms_front::random::<32>();
    tracing::trace!(body = ?BASE64.encode(&control), "control");
    assert_eq!(log.shows(&control), ["base64"]);

    let kek = AwsKmsKek::builder(&arn).client(client).build().await.unwrap();
    let own = UnwrappedDek::new(kms_front::random::<32>().to_vec()).to_dek().unwrap();
    let context = context("alice");
    let wrapped = kek.wrap(&context, &own).await.unwrap();
    assert_eq!(kek.unwrap(&context, &wrapped).await.unwrap().expose(), own.expose());
    let (generated, entry) = kek.generate(&context).await.unwrap();
    kek.rewrap(&context, &entry).await.unwrap();
    kek.health().await.unwrap();
    // And where something goes wrong.
    front.fail(kms_front::Fault::error(500, "KMSInternalException", ""));
    kek.wrap(&context, &own).await.unwrap_err();
    front.recover();
    for fault in [200, 500] {
        front.fail(kms_front::Fault::new(kms_front::Effect::Raw(fault, "{")));
        kek.wrap(&context, &own).await.unwrap_err();
        kek.unwrap(&context, &wrapped).await.unwrap_err();
        front.recover();
    }
    let none: [&str; 0] = [];
    assert_eq!(log.shows(own.expose()), none);
    assert_eq!(log.shows(generated.expose()), none);
    let text = String::from_utf8_lossy(&log.0.lock().unwrap()).into_owned();
    assert!(text.contains("TrentService.Encrypt") && text.contains("TRACE"), "the log was on");
    assert!(!text.contains(&login.secret), "nor the secret access key");
}
