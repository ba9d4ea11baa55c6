//! The generated grants of a domain on a real server: what each role needs works, and nothing else
//! does.

use waxseal::domain::DomainConfig;
use waxseal::domain::duties::{Duties, Holders};
use waxseal::store::KeyStore;
use waxseal::store::StoreErrorClass::Misconfigured;
use waxseal_sqlx::duties::PostgresGrants;
use waxseal_testing::postgres::Postgres;

use super::common::dek;
use super::{abilities, migrated, store};

fn holders() -> Holders {
    Holders::default()
        .key_administrators(["administrator"])
        .key_owners(["owner"])
        .writers(["writer", "service"])
        .readers(["reader", "service"])
        .rewrappers(["rewrapper"])
        .auditors(["auditor"])
        .break_glass(["glass"])
}

fn grants(holders: &Holders) -> PostgresGrants {
    let config = DomainConfig::default().wrap_with("local:/orders.kek?name=orders");
    PostgresGrants::new(&Duties::new("orders", &config, holders).unwrap(), "public").unwrap()
}

const LOOKS: &str = "SELECT row_id, branch, period, epoch, created_at, changed_at, erased_at, kind, \
                     state, period_start FROM waxseal_keys LIMIT 1";

#[tokio::test]
async fn each_holder_can_do_what_its_roles_need_and_nothing_else() {
    let server = Postgres::start();
    let owner = migrated(&server).await;
    owner.insert(&dek()).await.unwrap();
    // Mistakes of before.
    server.sql_in_keys("GRANT ALL ON waxseal_keys, waxseal_schema TO PUBLIC");
    server.sql_in_keys("GRANT CREATE ON SCHEMA public TO PUBLIC");
    let grants = grants(&holders());
    server.role("stranger");
    server.sql_in_keys(&grants.of_everybody());
    for name in grants.names() {
        server.role(name);
        server.sql_in_keys(&format!("GRANT ALL ON waxseal_keys, waxseal_schema TO {name}"));
        server.sql_in_keys(&format!("GRANT CREATE ON SCHEMA public TO {name}"));
        server.sql_in_keys(&grants.of(name).unwrap());
    }
    let (yes, no) = (true, false);
    // Whether it sees the rows, and what the store does for it.
    for (name, looks, expected) in [
        ("stranger", no, [no, no, no, no, no, no]),
        ("administrator", yes, [no, no, no, no, no, no]),
        ("owner", yes, [yes, no, no, yes, yes, yes]),
        ("writer", yes, [yes, yes, no, no, no, no]),
        ("reader", yes, [yes, no, no, no, no, no]),
        ("service", yes, [yes, yes, no, no, no, no]),
        ("rewrapper", yes, [yes, no, no, yes, no, no]),
        ("auditor", yes, [no, no, no, no, no, no]),
        ("glass", no, [no, no, no, no, no, no]),
    ] {
        assert_eq!(abilities(&store(&server, name), &owner).await, expected, "{name}");
        assert_eq!(store(&server, name).health().await.is_ok(), looks, "{name}");
        let sql = format!("SET ROLE {name}; {LOOKS}");
        match looks {
            true => assert!(server.sql_in_keys(&sql).contains("live"), "{name}"),
            false => assert!(server.refused(&sql).contains("permission denied"), "{name}"),
        }
        for sql in [
            "DELETE FROM waxseal_keys",
            "TRUNCATE waxseal_keys",
            "DROP TABLE waxseal_keys",
            "CREATE TABLE mine (a int)",
            "ALTER TABLE waxseal_keys DISABLE TRIGGER ALL",
            "UPDATE waxseal_keys SET epoch = 9",
            "UPDATE waxseal_schema SET version = 9",
        ] {
            server.refused(&format!("SET ROLE {name}; {sql}"));
        }
    }
    server.refused("SET ROLE stranger; SELECT row FROM waxseal_keys");
    assert!(server.refused("SET ROLE auditor; SELECT row FROM waxseal_keys").contains("denied"));
}

#[tokio::test]
async fn break_glass_reads_while_it_is_enabled_and_no_longer() {
    let server = Postgres::start();
    let owner = migrated(&server).await;
    server.role("glass");
    let grants = grants(&holders());
    let (enabled, disabled) =
        (grants.enabled_break_glass("glass").unwrap(), grants.of("glass").unwrap());
    let store = store(&server, "glass");
    for (sql, reads) in [(&disabled, false), (&enabled, true), (&disabled, false)] {
        server.sql_in_keys(sql);
        // The same connection stays in use.
        assert_eq!(abilities(&store, &owner).await, [reads, false, false, false, false, false]);
    }
    assert!(grants.enabled_break_glass("reader").is_err());
}

#[tokio::test]
async fn who_lost_a_role_loses_its_grants() {
    let server = Postgres::start();
    let owner = migrated(&server).await;
    server.role("service");
    let writes = |holders: Holders| grants(&holders).of("service").unwrap();
    let (yes, no) = (true, false);
    for (holders, expected) in [
        (holders(), [yes, yes, no, no, no, no]),
        (holders().writers([""; 0]), [yes, no, no, no, no, no]),
        (holders().writers([""; 0]).readers([""; 0]).auditors(["service"]), [no; 6]),
    ] {
        server.sql_in_keys(&writes(holders));
        assert_eq!(abilities(&store(&server, "service"), &owner).await, expected);
    }
}

#[test]
fn a_name_that_means_others_or_breaks_out_of_the_statement_is_refused() {
    let config = DomainConfig::default().wrap_with("local:/orders.kek?name=orders");
    for name in [
        "public",
        "none",
        "current_user",
        "current_role",
        "session_user",
        "user",
        "pg_read_all_data",
        "Writer",
        "a b",
        "a;drop",
        "\"a\"",
        "a--",
        "a'",
        "\u{e9}",
        "1a",
        &"a".repeat(64),
    ] {
        let duties = Duties::new("orders", &config, &Holders::default().readers([name])).unwrap();
        let error = PostgresGrants::new(&duties, "public").unwrap_err();
        assert_eq!(error.class(), Misconfigured, "{name}");
    }
    let duties = Duties::new("orders", &config, &holders()).unwrap();
    for schema in ["", "Keys", "a;drop", "a.b"] {
        assert!(PostgresGrants::new(&duties, schema).is_err(), "{schema}");
    }
    let grants = grants(&holders());
    assert!(grants.of("nobody").is_err());
    let names =
        ["administrator", "auditor", "glass", "owner", "reader", "rewrapper", "service", "writer"];
    assert_eq!(grants.names().collect::<Vec<_>>(), names);
    let expected = "-- Domain orders: writer, reader.\n\
        BEGIN;\n\
        REVOKE ALL ON public.waxseal_schema, public.waxseal_keys FROM service;\n\
        REVOKE CREATE ON SCHEMA public FROM service;\n\
        GRANT USAGE ON SCHEMA public TO service;\n\
        GRANT SELECT ON public.waxseal_schema TO service;\n\
        GRANT SELECT ON public.waxseal_keys TO service;\n\
        GRANT INSERT (row_id, branch, period, epoch, row) ON public.waxseal_keys TO service;\n\
        COMMIT;\n";
    assert_eq!(grants.of("service").unwrap(), expected);
}
