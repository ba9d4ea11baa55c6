//! A stand-in for Azure Key Vault, Managed HSM and Entra ID, over TLS with an authority of its own.
//!
//! It follows the published REST reference (<https://learn.microsoft.com/rest/api/keyvault/>), and
//! each behaviour names its page where it is. Where the pages leave something open, it says so. It
//! is not Azure, and behaviour that is tested against it is not known to hold there.
//!
//! One server stands for every vault (`NAME.vault.azure.net`), every Managed HSM
//! (`NAME.managedhsm.azure.net`) and for the login service (`localhost`). The `Host` header says
//! which one is meant. Its certificate names them all.
#![allow(missing_docs, unreachable_pub)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

mod answers;
pub mod child;
mod crypto;
mod login;
mod roles;
mod serve;
mod world;

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio_rustls::rustls::ServerConfig;

use crate::certificates::{Authority, Certificate};
use crate::outputs::noted;
use crate::server_thread::ServerThread;
pub use answers::Refused;
pub use crypto::Material;
pub use world::{Access, Assignment, Key, KeyVersion, Permission, Principal, Token, Vault, World};

/// The tenant of the login service.
pub const TENANT: &str = "72f988bf-0000-4000-8000-2d7cd011db47";

/// What goes wrong.
#[derive(Clone, Debug)]
pub enum Effect {
    /// This, instead of what the service would have answered.
    Raw(u16, &'static str),
    /// To this URL, with the method and the body.
    Redirect(&'static str),
    /// An error in the service's form, with these seconds in `Retry-After`.
    Error(Refused, Option<u64>),
    /// The answer comes later.
    Delay(Duration),
    /// No answer ever.
    Hang,
    /// The answer is changed.
    Alter(fn(&mut serde_json::Value)),
}

/// Something that goes wrong until it is taken away, for all requests or for some.
#[derive(Clone, Debug)]
pub struct Fault {
    pub effect: Effect,
    pub operation: Option<&'static str>,
    /// Only so often.
    pub times: Option<u32>,
}

impl Fault {
    pub fn new(effect: Effect) -> Self {
        Self { effect, operation: None, times: None }
    }

    /// `get`, `encrypt`, `decrypt`, `wrapkey`, `unwrapkey`, or `login`.
    pub fn on(mut self, operation: &'static str) -> Self {
        self.operation = Some(operation);
        self
    }

    pub fn times(mut self, times: u32) -> Self {
        self.times = Some(times);
        self
    }
}

pub(crate) struct Shared {
    pub(crate) port: u16,
    pub(crate) world: Mutex<World>,
    pub(crate) faults: Mutex<Vec<Fault>>,
    /// Operations that came, answered or not.
    pub(crate) arrived: Mutex<Vec<String>>,
    pub(crate) tls: Mutex<Arc<ServerConfig>>,
    /// Changes when every connection is to end.
    pub(crate) cut: watch::Sender<u64>,
    pub(crate) ids: AtomicU64,
}

impl Shared {
    pub(crate) fn next_id(&self) -> u64 {
        self.ids.fetch_add(1, Ordering::SeqCst)
    }

    pub(crate) fn fault_for(&self, operation: &str) -> Option<Effect> {
        let mut faults = self.faults.lock().unwrap();
        let fault = faults.iter_mut().find(|fault| {
            fault.operation.is_none_or(|wanted| wanted == operation) && fault.times != Some(0)
        })?;
        fault.times = fault.times.map(|times| times - 1);
        Some(fault.effect.clone())
    }
}

pub struct Azure {
    shared: Arc<Shared>,
    authority: Authority,
    files: tempfile::TempDir,
    _thread: ServerThread,
}

impl Azure {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let authority = Authority::new();
        let files = tempfile::tempdir().unwrap();
        std::fs::write(files.path().join("ca.pem"), authority.pem()).unwrap();
        let shared = Arc::new(Shared {
            port,
            world: Mutex::default(),
            faults: Mutex::default(),
            arrived: Mutex::default(),
            tls: Mutex::new(serve::tls(&authority)),
            cut: watch::channel(0).0,
            ids: AtomicU64::new(1),
        });
        let for_thread = shared.clone();
        let thread =
            ServerThread::start(listener, move |listener| serve::serve(listener, for_thread));
        Self { shared, authority, files, _thread: thread }
    }

    pub fn port(&self) -> u16 {
        self.shared.port
    }

    pub fn address(&self) -> SocketAddr {
        ([127, 0, 0, 1], self.shared.port).into()
    }

    /// Where tokens come from.
    pub fn authority_host(&self) -> String {
        format!("https://localhost:{}", self.shared.port)
    }

    /// The file of the authority that signed the server's certificate.
    pub fn ca_file(&self) -> PathBuf {
        self.files.path().join("ca.pem")
    }

    /// A directory for files of a test.
    pub fn files(&self) -> &Path {
        self.files.path()
    }

    pub fn world(&self) -> MutexGuard<'_, World> {
        self.shared.world.lock().unwrap()
    }

    /// Makes an application with a secret, and writes the secret into a file.
    pub fn application(&self, client_id: &str) -> PathBuf {
        let secret = noted(format!("secret-of-{client_id}"));
        self.world().applications.insert(client_id.to_owned(), Principal::with_secret(&secret));
        let path = self.files.path().join(format!("{client_id}.secret"));
        std::fs::write(&path, secret).unwrap();
        path
    }

    pub fn fail(&self, fault: Fault) {
        self.shared.faults.lock().unwrap().push(fault);
    }

    pub fn recover(&self) {
        self.shared.faults.lock().unwrap().clear();
    }

    /// Requests that came, answered or not.
    pub fn arrived(&self, operation: &str) -> usize {
        self.shared.arrived.lock().unwrap().iter().filter(|it| *it == operation).count()
    }

    /// Ends every connection, and returns when they have ended.
    pub fn cut(&self) {
        self.shared.cut.send_modify(|cut| *cut += 1);
        let start = Instant::now();
        // Each has a receiver.
        while self.shared.cut.receiver_count() > 0 && start.elapsed().as_secs() < 5 {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// From now on new connections are shown another certificate, and the old ones end.
    pub fn show(&self, shown: Certificate) {
        *self.shared.tls.lock().unwrap() = match shown {
            Certificate::Right => serve::tls(&self.authority),
            other => serve::wrong_tls(&self.authority, other),
        };
        self.cut();
    }
}
