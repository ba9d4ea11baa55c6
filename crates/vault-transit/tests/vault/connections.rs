//! Connections that a middlebox forgot, over TLS and in the clear, and certificates that change
//! while the service runs. Against a real server.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use waxseal_testing::{openbao, support};

use futures_util::future::join_all;
use openbao::{OpenBao, Options};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use support::{a_dek, context};
use waxseal::kek::KekErrorClass::{Misconfigured, Unavailable};
use waxseal::kek::{Health, KekProvider};
use waxseal::{Aad, CallPolicy, EncryptionContext, Envelope};
use waxseal_vault_transit::{VaultAuth, VaultTransitKek, VaultTransitKekBuilder};

/// Connections that are open go silent for ever when it forgets; new ones work.
struct Middlebox {
    port: u16,
    generation: Arc<AtomicUsize>,
    connections: Arc<AtomicUsize>,
}

impl Middlebox {
    fn start(upstream: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (generation, connections) =
            (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (current, count) = (generation.clone(), connections.clone());
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let mine = current.load(Ordering::SeqCst);
                count.fetch_add(1, Ordering::SeqCst);
                let Ok(server) = TcpStream::connect(("127.0.0.1", upstream)) else { continue };
                for (from, to) in
                    [(client.try_clone().unwrap(), server.try_clone().unwrap()), (server, client)]
                {
                    let current = current.clone();
                    std::thread::spawn(move || pass(from, to, mine, &current));
                }
            }
        });
        Self { port, generation, connections }
    }

    fn forget(&self) {
        self.generation.fetch_add(1, Ordering::SeqCst);
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream, mine: usize, current: &AtomicUsize) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(len @ 1..) = from.read(&mut buffer) {
        if current.load(Ordering::SeqCst) == mine && to.write_all(&buffer[..len]).is_err() {
            break;
        }
    }
    if current.load(Ordering::SeqCst) == mine {
        let _ = to.shutdown(Shutdown::Write);
    }
}

async fn server(tls: bool) -> OpenBao {
    let server = OpenBao::with(Options { tls, ..Options::default() }).await;
    server.create_key("orders", true).await;
    server
}

fn at(server: &OpenBao, port: u16, tls: bool) -> VaultTransitKekBuilder {
    let scheme = if tls { "https" } else { "http" };
    let builder =
        VaultTransitKek::builder("test", "orders").address(format!("{scheme}://127.0.0.1:{port}"));
    let builder = builder.auth(VaultAuth::token(server.root_token()));
    if tls { builder.ca_file(server.ca_file()) } else { builder }
}

async fn messages(kek: VaultTransitKek, count: usize) -> Vec<(EncryptionContext, Vec<u8>)> {
    let envelope = Envelope::builder().wrap_with(kek).build().unwrap();
    let mut messages = Vec::new();
    for i in 0..count {
        let tenant = context(&format!("t{i}"));
        let sealed = envelope.encrypt(&tenant, Aad::empty(), b"payload").await.unwrap();
        messages.push((tenant, sealed));
    }
    messages
}

const POOL: usize = 16;

/// Every read is cold, and has two tries.
async fn after_a_middlebox_forgot(tls: bool, busy: bool) {
    let server = server(tls).await;
    let middlebox = Middlebox::start(server.port());
    let messages = messages(at(&server, server.port(), tls).build().unwrap(), 2 * POOL + 40).await;
    let kek = at(&server, middlebox.port, tls).build().unwrap();
    let policy = CallPolicy::default().tries(2);
    let reader = Envelope::builder().unwrap_with(kek.clone()).call_policy(policy).build().unwrap();
    let read = async |(tenant, sealed): &(EncryptionContext, Vec<u8>)| {
        reader
            .decrypt(tenant, Aad::empty(), sealed)
            .await
            .map(|plaintext| assert_eq!(&*plaintext, b"payload"))
    };
    let (pool, rest) = messages.split_at(POOL);
    // As many connections as there are calls at once, by the provider itself: the envelope would
    // have its budget.
    let (alice, dek) = (context("alice"), a_dek());
    let wrapped = kek.wrap(&alice, &dek).await.unwrap();
    for answer in join_all((0..POOL).map(|_| kek.unwrap(&alice, &wrapped))).await {
        answer.unwrap();
    }
    read(&pool[0]).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let before = middlebox.connections();
    middlebox.forget();
    if busy {
        for result in join_all(rest[..8].iter().map(&read)).await {
            result.unwrap();
        }
    }
    for message in &rest[8..] {
        read(message).await.unwrap();
    }
    println!(
        "tls {tls}, busy {busy}: {before} connections were forgotten, {} were made",
        middlebox.connections() - before
    );

    // A pool that works is kept.
    let before = middlebox.connections();
    for _ in 0..100 {
        kek.unwrap(&alice, &wrapped).await.unwrap();
    }
    assert!(
        middlebox.connections() - before <= 3,
        "{} new connections",
        middlebox.connections() - before
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lone_caller_is_served_within_two_tries_after_a_middlebox_forgot_the_pool() {
    after_a_middlebox_forgot(false, false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn so_it_is_over_tls() {
    after_a_middlebox_forgot(true, false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn so_is_every_one_of_several_that_are_busy_at_once() {
    after_a_middlebox_forgot(true, true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_providers_own_timeout_ends_the_pool_as_well() {
    let server = server(false).await;
    let middlebox = Middlebox::start(server.port());
    let kek = at(&server, middlebox.port, false).timeout(Duration::from_secs(1)).build().unwrap();
    let (alice, dek) = (context("alice"), a_dek());
    let wrapped = kek.wrap(&alice, &dek).await.unwrap();
    for answer in join_all((0..POOL).map(|_| kek.unwrap(&alice, &wrapped))).await {
        answer.unwrap();
    }
    tokio::time::sleep(Duration::from_millis(1100)).await;
    middlebox.forget();
    assert!(kek.unwrap(&alice, &wrapped).await.is_err(), "the first one meets a dead connection");
    kek.unwrap(&alice, &wrapped).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_on_its_way_is_not_disturbed_by_another_ones_timeout() {
    let server = server(false).await;
    let kek = at(&server, server.port(), false).build().unwrap();
    let (alice, dek) = (context("alice"), a_dek());
    let wrapped = kek.wrap(&alice, &dek).await.unwrap();
    tokio::time::sleep(Duration::from_millis(1100)).await;
    server.stop();
    let patient = {
        let (kek, alice, wrapped) = (kek.clone(), alice.clone(), wrapped.clone());
        tokio::spawn(async move { kek.unwrap(&alice, &wrapped).await.map(|_| ()) })
    };
    // Other callers give up, and their pool is not used any more.
    for _ in 0..3 {
        let given_up =
            tokio::time::timeout(Duration::from_millis(1200), kek.unwrap(&alice, &wrapped)).await;
        assert!(given_up.is_err(), "the server stands still, and yet: {given_up:?}");
    }
    server.go_on();
    patient.await.unwrap().unwrap();
}

// --- certificates

/// A CA and a certificate of its for 127.0.0.1 and `vault.internal`, as PEM.
fn authority() -> (String, String, String) {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let names = vec!["127.0.0.1".to_owned(), "vault.internal".to_owned()];
    let leaf = CertificateParams::new(names).unwrap().signed_by(&key, &ca).unwrap();
    (ca.pem(), leaf.pem(), key.serialize_pem())
}

/// TLS in front of a server, with a certificate that can be changed; every connection shows the one
/// of the moment.
struct TlsFront {
    port: u16,
    config: Arc<std::sync::Mutex<Arc<tokio_rustls::rustls::ServerConfig>>>,
    connections: Arc<AtomicUsize>,
}

fn config(
    certificate: &str,
    key: &str,
    clients: Option<&str>,
) -> Arc<tokio_rustls::rustls::ServerConfig> {
    use tokio_rustls::rustls::pki_types::pem::PemObject;
    use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
    use tokio_rustls::rustls::server::WebPkiClientVerifier;
    use tokio_rustls::rustls::{RootCertStore, ServerConfig, crypto};

    let provider = Arc::new(crypto::aws_lc_rs::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .unwrap();
    let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()];
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
    let builder = match clients {
        Some(ca) => {
            let mut roots = RootCertStore::empty();
            roots.add(CertificateDer::from_pem_slice(ca.as_bytes()).unwrap()).unwrap();
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                .build()
                .unwrap();
            builder.with_client_cert_verifier(verifier)
        }
        None => builder.with_no_client_auth(),
    };
    Arc::new(builder.with_single_cert(chain, key).unwrap())
}

impl TlsFront {
    async fn start(upstream: u16, first: Arc<tokio_rustls::rustls::ServerConfig>) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (shared, connections) =
            (Arc::new(std::sync::Mutex::new(first)), Arc::new(AtomicUsize::new(0)));
        let (config, count) = (shared.clone(), connections.clone());
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let acceptor = tokio_rustls::TlsAcceptor::from(config.lock().unwrap().clone());
                let count = count.clone();
                tokio::spawn(async move {
                    let Ok(mut client) = acceptor.accept(client).await else { return };
                    count.fetch_add(1, Ordering::SeqCst);
                    let mut server =
                        tokio::net::TcpStream::connect(("127.0.0.1", upstream)).await.unwrap();
                    let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
                });
            }
        });
        Self { port, config: shared, connections }
    }

    fn change(&self, to: Arc<tokio_rustls::rustls::ServerConfig>) {
        *self.config.lock().unwrap() = to;
    }
}

/// A file, with another state of it than any before.
fn write(path: &PathBuf, content: &str) {
    let next = path.with_extension("next");
    fs::write(&next, content).unwrap();
    fs::rename(next, path).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ca_file_that_changes_is_read_anew_and_a_broken_one_changes_nothing() {
    let server = server(false).await;
    let (old_ca, certificate, key) = authority();
    let (new_ca, new_certificate, new_key) = authority();
    let front = TlsFront::start(server.port(), config(&certificate, &key, None)).await;
    let path = server.file("cas.pem", &old_ca);
    let builder = VaultTransitKek::builder("test", "orders")
        .address(format!("https://127.0.0.1:{}", front.port));
    let kek = builder.ca_file(&path).auth(VaultAuth::token(server.root_token())).build().unwrap();
    let (alice, dek) = (context("alice"), a_dek());
    let wrapped = kek.wrap(&alice, &dek).await.unwrap();
    assert_eq!(kek.health().await.unwrap(), Health::Ready);

    write(&path, "half a certi");
    kek.unwrap(&alice, &wrapped).await.unwrap();
    let health = kek.health().await.unwrap();
    assert!(matches!(&health, Health::Degraded(why) if why.contains("cas.pem")), "{health:?}");

    // The new CA as well, then the server, then the new one alone.
    write(&path, &(old_ca.clone() + &new_ca));
    kek.unwrap(&alice, &wrapped).await.unwrap();
    assert_eq!(kek.health().await.unwrap(), Health::Ready);
    front.change(config(&new_certificate, &new_key, None));
    write(&path, &new_ca);
    kek.unwrap(&alice, &wrapped).await.unwrap();

    // A certificate that no authority vouches for is not an outage of the key service.
    write(&path, &old_ca);
    let error = kek.unwrap(&alice, &wrapped).await.unwrap_err();
    assert_eq!(error.class(), Misconfigured, "{error}");
    assert!(error.to_string().contains("certificate"), "{error}");
    write(&path, &new_ca);
    kek.unwrap(&alice, &wrapped).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_certificate_that_changes_is_shown_from_the_next_call_on() {
    let server = server(false).await;
    let (ca, certificate, key) = authority();
    let (new_ca, new_certificate, new_key) = authority();
    let front = TlsFront::start(server.port(), config(&certificate, &key, Some(&ca))).await;
    let (certificate_file, key_file) =
        (server.file("client.pem", &certificate), server.file("client.key", &key));
    let builder = VaultTransitKek::builder("test", "orders")
        .address(format!("https://127.0.0.1:{}", front.port));
    let builder = builder
        .ca_file(server.file("ca.pem", &ca))
        .client_certificate(&certificate_file, &key_file);
    let kek = builder.auth(VaultAuth::token(server.root_token())).build().unwrap();
    let (alice, dek) = (context("alice"), a_dek());
    let wrapped = kek.wrap(&alice, &dek).await.unwrap();

    // From now on only the new one is accepted. Between the two files nothing matches, and the old
    // one stays in use where it is known.
    write(&certificate_file, &new_certificate);
    kek.unwrap(&alice, &wrapped).await.unwrap();
    assert!(matches!(kek.health().await.unwrap(), Health::Degraded(_)));
    front.change(config(&certificate, &key, Some(&new_ca)));
    write(&key_file, &new_key);
    let connections = front.connections.load(Ordering::SeqCst);
    kek.unwrap(&alice, &wrapped).await.unwrap();
    assert!(
        front.connections.load(Ordering::SeqCst) > connections,
        "shown on a connection of its own"
    );
    assert_eq!(kek.health().await.unwrap(), Health::Ready);

    // One that the server does not accept is for an operator.
    front.change(config(&certificate, &key, Some(&ca)));
    write(&certificate_file, &(new_certificate + "\n"));
    // In TLS 1.3 the server refuses it when the client takes the handshake to be done. If the
    // connection has ended before a request is handed to it, the request knows nothing of the
    // reason: the next may.
    let mut tries = 0;
    let error = loop {
        tries += 1;
        let error = kek.unwrap(&alice, &wrapped).await.unwrap_err();
        if error.class() != Unavailable || tries == 20 {
            break error;
        }
    };
    assert_eq!(error.class(), Misconfigured, "{error}, {tries} tries");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_name_in_the_certificate_may_be_another_than_the_addresss_and_the_cas_a_directory() {
    let server = server(false).await;
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new(vec!["vault.internal".to_owned()])
        .unwrap()
        .signed_by(&key, &ca)
        .unwrap();
    let front =
        TlsFront::start(server.port(), config(&leaf.pem(), &key.serialize_pem(), None)).await;
    let directory = server.file("x", "").with_file_name("cas");
    fs::create_dir_all(directory.join("more")).unwrap();
    fs::write(directory.join("a.pem"), authority().0).unwrap();
    fs::write(directory.join("more/b.pem"), ca.pem()).unwrap();
    let (alice, dek) = (context("alice"), a_dek());
    let builder = || {
        let builder = VaultTransitKek::builder("test", "orders").ca_directory(&directory);
        builder.auth(VaultAuth::token(server.root_token()))
    };
    for host in ["127.0.0.1", "localhost"] {
        let address = format!("https://{host}:{}", front.port);
        let named = builder().address(&address).server_name("vault.internal").build().unwrap();
        let wrapped = named.wrap(&alice, &dek).await.unwrap();
        assert_eq!(named.unwrap(&alice, &wrapped).await.unwrap().expose(), dek.expose());
        for other in [builder(), builder().server_name("vault.example")] {
            let error =
                other.address(&address).build().unwrap().wrap(&alice, &dek).await.unwrap_err();
            assert_eq!(error.class(), Misconfigured, "{error}");
        }
    }
}
