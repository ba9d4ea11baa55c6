//! Installs what the tests need: servers, stand-ins and the second reader, all at the same time.
//!
//! Each test that needs one installs it as well, if it is not there. This has them there before.

use std::process::ExitCode;
use std::thread;

use waxseal_testing::{opa, openbao, pkcs11, postgres, python, seaweedfs, stand_in};

fn main() -> ExitCode {
    let installers: [fn(); 6] = [
        || drop(stand_in::installed()),
        || drop(seaweedfs::binary()),
        || drop(openbao::binary()),
        || drop(opa::installed()),
        || drop(python::second_reader()),
        // One after the other: they are packages of Debian, and it installs one at a time.
        || drop((postgres::programs(), pkcs11::softhsm(), pkcs11::kryoptic())),
    ];
    let installing = installers.map(thread::spawn);
    // What fails has printed why.
    match installing.map(thread::JoinHandle::join).iter().all(Result::is_ok) {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}
