//! A dirty environment: variables of other tools, stale files, proxies. It belongs to the process,
//! so each case runs in a separate one.

use std::process::Command;

use waxseal::kek::KekProvider;
use waxseal_google_kms::GoogleKmsKek;
use waxseal_testing::support::{a_dek, context};

use crate::Ground;

const PLACE: &str = "WAXSEAL_TEST_GOOGLE_PLACE";
const CHILD: &str = "environment::the_process_with_that_environment";

/// Wraps once, and says what came of it. It does nothing elsewhere.
#[test]
fn the_process_with_that_environment() {
    let Ok(place) = std::env::var(PLACE) else { return };
    let [url, key, source] = place.split(' ').collect::<Vec<_>>()[..] else { panic!() };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let answer = runtime.block_on(async {
        let builder = GoogleKmsKek::builder(key).endpoint(url);
        let builder = match source {
            "-" => builder,
            source => builder.metadata_server_at(source),
        };
        let kek = match builder.build().await {
            Ok(kek) => kek,
            Err(error) => return format!("not built: {error}"),
        };
        match kek.wrap(&context("alice"), &a_dek()).await {
            Ok(_) => "wrapped".to_owned(),
            Err(error) => format!("{}: {error}", error.class()),
        }
    });
    println!("\nanswer: {answer}");
}

/// What the process says whose environment has these variables, and no others of their kind.
fn run(ground: &Ground, source: &str, variables: &[(&str, &str)]) -> String {
    let place = format!("{} {} {source}", ground.front.url(), ground.key);
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", CHILD, "--nocapture"]).env(PLACE, place);
    for (name, _) in std::env::vars() {
        let lower = name.to_lowercase();
        if ["_proxy", "google", "gce", "gcloud", "cloudsdk"].iter().any(|it| lower.contains(it)) {
            command.env_remove(name);
        }
    }
    // Where gcloud keeps a user's credentials.
    command.env("HOME", "/nowhere").envs(variables.iter().copied());
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{variables:?}: {text}");
    let answer = text.lines().find_map(|line| line.strip_prefix("answer: "));
    let answer = answer.unwrap_or_else(|| panic!("{variables:?}: {text}")).to_owned();
    assert!(!answer.contains("hunter2"), "{answer}");
    answer
}

#[test]
fn default_credentials_that_point_nowhere_are_an_operator_s_matter_and_show_nothing() {
    let ground = Ground::software();
    let files = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = files.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let directory = files.path().display().to_string();
    for path in [
        "/nowhere/credentials.json".to_owned(),
        directory,
        file("empty", ""),
        file("text", "hunter2"),
        file("list", "[\"hunter2\"]"),
        file("half", "{\"type\":\"service_account\",\"private_key\":\"hunter2"),
        file("kind", "{\"type\":\"hunter2\"}"),
    ] {
        let answer = run(&ground, "-", &[("GOOGLE_APPLICATION_CREDENTIALS", &path)]);
        assert!(answer.starts_with("misconfigured"), "{path}: {answer}");
    }
    // The metadata server that a variable names.
    let host = ground.front.url().replace("http://", "");
    assert_eq!(run(&ground, "-", &[("GCE_METADATA_HOST", &host)]), "wrapped");
    let answer = run(&ground, "-", &[("GCE_METADATA_HOST", "127.0.0.1:1")]);
    assert!(answer.starts_with("unavailable"), "{answer}");
}

#[test]
fn a_source_that_was_chosen_does_not_care_for_the_environment() {
    let ground = Ground::software();
    let answer = run(
        &ground,
        &ground.front.url(),
        &[
            ("GOOGLE_APPLICATION_CREDENTIALS", "/nowhere"),
            ("GOOGLE_CLOUD_PROJECT", "hunter2"),
            ("CLOUDSDK_CONFIG", "/nowhere"),
        ],
    );
    assert_eq!(answer, "wrapped");
}

/// What goes in the clear, to this machine, passes by every proxy. The library's own request to the
/// metadata server does not: NO_PROXY has to name it, as the page says.
#[test]
fn a_proxy_of_the_environment_does_not_see_what_goes_in_the_clear() {
    let ground = Ground::software();
    let url = ground.front.url();
    for name in ["HTTP_PROXY", "http_proxy", "ALL_PROXY"] {
        let proxy = (name, "http://127.0.0.1:1");
        assert_eq!(run(&ground, &url, &[proxy, ("NO_PROXY", "127.0.0.1")]), "wrapped", "{name}");
    }
    for proxy in ["", "u:hunter2@", "::", "http://u:hunter2@["] {
        let answer = run(&ground, &url, &[("HTTPS_PROXY", proxy)]);
        assert_eq!(answer, "wrapped", "{proxy}");
    }
}
