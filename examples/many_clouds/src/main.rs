//! One record under the keys of five services, which are stopped, denied and rotated one after the
//! other.
//!
//!     cargo run --release -p waxseal-many-clouds
//!
//! The record's DEK is wrapped by a key in AWS KMS, one in Google Cloud KMS, one in an Azure
//! Managed HSM, one in Vault and one in an HSM. OpenBao, for Vault, and SoftHSM2 are real. The
//! first run installs them under `target/` and from Debian. The others are stand-ins of this
//! project. Nothing leaves this machine.
//!
//! All figures are counted and timed in this run, and the services count their requests themselves.
//! The program compares what it sees with what the library promises. If anything differs, it says
//! so and its exit status is not zero.

mod clouds;
mod promises;
mod rewraps;
mod service;
mod troubles;

use std::error::Error;
use std::process::ExitCode;

use clouds::Clouds;
use promises::Promises;
use waxseal_testing::pkcs11::{self, Ground, Kind};

fn main() -> ExitCode {
    // A token belongs to a process, so the rest runs in one of its own. In front of SoftHSM2 is a
    // module that counts calls and takes the token out.
    pkcs11::program(Kind::Shim, |hsm| match with(hsm) {
        Ok(promises) => promises.tell(),
        Err(error) => {
            eprintln!("many_clouds: {error}");
            ExitCode::FAILURE
        }
    })
}

fn with(hsm: &Ground) -> Result<Promises, Box<dyn Error>> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(async {
        let clouds = Clouds::start(hsm).await?;
        let mut promises = Promises::default();
        troubles::show(&clouds, &mut promises).await?;
        rewraps::show(&clouds, &mut promises).await?;
        Ok(promises)
    })
}
