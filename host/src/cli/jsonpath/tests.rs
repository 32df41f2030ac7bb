use super::*;
use serde_json::json;

/// The document of kubectl's own tests and of its documentation, shortened.
fn list() -> Value {
    json!({
        "kind": "List",
        "items": [
            {
                "kind": "None",
                "metadata": { "name": "127.0.0.1", "labels": { "kubernetes.io/hostname": "127.0.0.1" } },
                "status": {
                    "capacity": { "cpu": "4" },
                    "addresses": [{ "type": "LegacyHostIP", "address": "127.0.0.1" }],
                },
            },
            {
                "kind": "None",
                "metadata": { "name": "127.0.0.2", "labels": { "kubernetes.io/hostname": "127.0.0.2" } },
                "status": {
                    "capacity": { "cpu": "8" },
                    "addresses": [
                        { "type": "LegacyHostIP", "address": "127.0.0.2" },
                        { "type": "another", "address": "127.0.0.3" },
                    ],
                },
            },
        ],
        "users": [
            { "name": "myself", "user": {} },
            { "name": "e2e", "user": { "username": "admin", "password": "secret" }, "age": 7 },
        ],
    })
}

fn shown(template: &str) -> String {
    let parsed = Template::parse(template).unwrap_or_else(|error| panic!("{template}: {error}"));
    parsed.render(&list()).unwrap()
}

#[test]
fn the_examples_of_kubectl_give_what_kubectl_gives() {
    for (template, output) in [
        // https://kubernetes.io/docs/reference/kubectl/jsonpath/
        ("kind is {.kind}", "kind is List"),
        ("{.kind}", "List"),
        ("{['kind']}", "List"),
        ("{.users[1].name}", "e2e"),
        ("{..name}", "127.0.0.1 127.0.0.2 myself e2e"),
        ("{.items[*].metadata.name}", "127.0.0.1 127.0.0.2"),
        ("{.users[0].name}", "myself"),
        ("{.users[-1].name}", "e2e"),
        ("{.users[-2].name}", "myself"),
        ("{.users[-3].name}", ""),
        ("{.items[*]['metadata.name', 'status.capacity']}", ""),
        ("{.items[*]['kind', 'metadata']['name']}", "127.0.0.1 127.0.0.2"),
        (r#"{.users[?(@.name=="e2e")].user.password}"#, "secret"),
        (
            "{range .items[*]}[{.metadata.name}, {.status.capacity}] {end}",
            r#"[127.0.0.1, {"cpu":"4"}] [127.0.0.2, {"cpu":"8"}] "#,
        ),
        (r#"{range .items[*]}{.metadata.name}{"\t"}{end}"#, "127.0.0.1\t127.0.0.2\t"),
        (r"{.items[*].metadata.labels.kubernetes\.io/hostname}", "127.0.0.1 127.0.0.2"),
        ("{.items[0:1].metadata.name}", "127.0.0.1"),
        ("{.items[1:].metadata.name}", "127.0.0.2"),
        ("{.items[:-1].metadata.name}", "127.0.0.1"),
        ("{.items[::2].metadata.name}", "127.0.0.1"),
        ("{.items[5:].metadata.name}", ""),
        ("{.items[0,1].metadata.name}", "127.0.0.1 127.0.0.2"),
        ("{.users[*].user.*}", "secret admin"),
        ("{.items[1].status.addresses[?(@.type!='another')].address}", "127.0.0.2"),
        ("{.users[?(@.age)].name}", "e2e"),
        ("{.users[?(@.age>6)].name}", "e2e"),
        ("{.users[?(@.age>=7)].name}", "e2e"),
        ("{.users[?(@.age<7)].name}", ""),
        ("{.users[?( @.age <= 7 )].name}", "e2e"),
        ("{range .users[*]}{.name}={$.kind};{end}", "myself=List;e2e=List;"),
        ("{.users[*].name}{'\\n'}", "myself e2e\n"),
        (
            "{range .items[*]}{range .status.addresses[*]}{@.address} {end}| {end}",
            "127.0.0.1 | 127.0.0.2 127.0.0.3 | ",
        ),
        ("{.nothing.at.all}", ""),
        ("{.kind.of}", ""),
        ("{.kind[0]}", ""),
        ("{.users[1].age}", "7"),
        // Seen with kubectl 1.35.
        ("{.users[*]['name','age']}", "myself e2e 7"),
        ("{.users[1]..password}", "secret"),
        ("{.users[0].user}", "{}"),
        ("{'a'}{\"a\\\"b\"}", "aa\"b"),
        ("{.users[?(@.user.username==\"admin\")].name}", "e2e"),
        ("{ .kind }", "List"),
        ("{.kind \"-\" .kind}", "List-List"),
        // Without braces, as in custom columns.
        (".kind", "List"),
        ("kind", "List"),
        ("items[1].metadata.name", "127.0.0.2"),
        ("$.kind", "List"),
        ("", ""),
    ] {
        if template.is_empty() {
            assert!(Template::parse(template).is_err());
        } else {
            assert_eq!(shown(template), output, "{template}");
        }
    }
    assert_eq!(Template::parse("{.}").unwrap().render(&json!([1, true, null])).unwrap(), "[1,true,null]");
    assert_eq!(Template::parse("{}").unwrap().render(&json!({ "a": 1 })).unwrap(), "{\"a\":1}");
    assert_eq!(Template::parse("{@}").unwrap().render(&json!("x")).unwrap(), "x");
}

#[test]
fn errors_say_where() {
    for (template, at, what) in [
        ("{.a", 4, "expected '}', found its end"),
        ("{.a.}", 5, "expected a name"),
        ("{.a[}", 5, "expected a number"),
        ("{.a[x]}", 5, "expected a number"),
        ("{.a[0}", 6, "expected ']'"),
        ("{.a[0:2:0]}", 8, "at least 1"),
        ("{.a[99999999999999999999]}", 5, "is not a number"),
        ("{.a[?(@.b='c')]}", 10, "written `==`"),
        ("{.a[?(@.b==c)]}", 12, "expected a path"),
        ("{.a[?(@.b==1 && @.c==2)]}", 14, "expected ')'"),
        ("{.a[?(@.b && @.c)]}", 11, "no `&&`"),
        ("{.a[?@.b]}", 6, "expected '('"),
        ("{.a['b]}", 5, "no end"),
        ("{\"x}", 2, "no end"),
        ("{range .a[*]}{.b}", 2, "no {end}"),
        ("{end}", 2, "without {range}"),
        ("{.a}}{", 7, "expected '}'"),
        ("a b", 2, "unexpected ' '"),
        (".a\\", 4, "backslash"),
    ] {
        let error = Template::parse(template).unwrap_err();
        assert_eq!(error.at, at, "{template}: {error}");
        assert!(error.to_string().contains(what), "{template}: {error}");
    }
    let ranges = "{range .a}".repeat(20) + &"{end}".repeat(20);
    assert!(Template::parse(&ranges).unwrap_err().what.contains("16 ranges"));
    let filters = "{.a".to_owned() + &"[?(@.a".repeat(20);
    assert!(Template::parse(&filters).unwrap_err().what.contains("16 filters"));
    assert!(Template::parse(&"x".repeat(20_000)).unwrap_err().what.contains("longer than"));
}

#[test]
fn a_path_leaves_what_follows_it() {
    for (text, rest) in [
        (r#"{.status.conditions[?(@.type=="Ready")].status}=True"#, "=True"),
        (r#".status.conditions[?(@.type=="Ready")].status=True"#, "=True"),
        ("status.phase", ""),
        (".metadata.name,IP:.status.podIP", ",IP:.status.podIP"),
    ] {
        assert_eq!(Path::parse_prefix(text).unwrap().1, rest, "{text}");
    }
    let pod = json!({ "status": { "conditions": [{ "type": "Ready", "status": "True" }] } });
    let (path, _) = Path::parse_prefix(r#"{.status.conditions[?(@.type=="Ready")].status}"#).unwrap();
    assert_eq!(path.find(&pod).unwrap(), [&json!("True")]);
    assert!(Path::parse_prefix("").is_err() && Path::parse_prefix("=x").is_err());
}

#[test]
fn no_path_is_endless() {
    // Each `..` looks at everything beneath what the one before it has found.
    let mut deep = json!(1);
    for _ in 0..100 {
        deep = json!({ "a": deep, "b": [1, 2, 3] });
    }
    let path = "{".to_owned() + &"..a".repeat(8) + "}";
    assert_eq!(Template::parse(&path).unwrap().render(&deep), Err(EvalError::Visits));
    let large = json!({ "a": "x".repeat(1 << 20), "b": vec![0; 100] });
    assert_eq!(Template::parse("{range .b[*]}{$.a}{end}").unwrap().render(&large), Err(EvalError::Output));
}

proptest::proptest! {
    #[test]
    fn nothing_makes_it_panic(template in r#"[{}.\[\]()@$?*:'"\\a-c0-9=!<> ,-]{0,40}|(\{(range )?[.]?[ab]?(\[[*0-9:,-]{0,5}\])?(\.\.)?[ab]?\}|\{end\}|x){0,6}"#) {
        let document = json!({ "a": [{ "b": 1 }, { "a": "x" }], "b": { "a": null } });
        if let Ok(parsed) = Template::parse(&template) {
            parsed.render(&document).ok();
        }
        Path::parse_prefix(&template).ok();
    }
}
