//! The library's types, as `pmix_common.h` and `pmix_server.h` of the Standard's version 4 lay them out.

use std::ffi::{CString, c_char, c_int, c_void};

/// `PMIX_RANK_WILDCARD`.
pub const WILDCARD: u32 = u32::MAX - 1;
/// `PMIX_MAX_NSLEN` and its end.
const NAME_ROOM: usize = 256;
/// `PMIX_MAX_KEYLEN` and its end.
const KEY_ROOM: usize = 512;

/// `pmix_nspace_t`.
pub type Name = [c_char; NAME_ROOM];

/// The name as the library has it.
pub fn name(text: &str) -> Option<Name> {
    into_room(text)
}

fn into_room<const N: usize>(text: &str) -> Option<[c_char; N]> {
    let mut out = [0; N];
    if text.is_empty() || text.len() >= N || !text.bytes().all(|b| b.is_ascii_graphic()) {
        return None;
    }
    for (to, from) in out.iter_mut().zip(text.bytes()) {
        *to = c_char::try_from(from).ok()?;
    }
    Some(out)
}

/// `pmix_proc_t`.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Proc {
    pub name: Name,
    pub rank: u32,
}

/// `pmix_value_t`. The union's largest member is `pmix_envar_t`, of three words.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct RawValue {
    kind: u16,
    data: Data,
}

#[derive(Clone, Copy)]
#[repr(C)]
union Data {
    flag: bool,
    small: u16,
    number: u32,
    pointer: *const c_void,
    room: [u64; 3],
}

/// `pmix_info_t`.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct RawInfo {
    key: [c_char; KEY_ROOM],
    flags: u32,
    value: RawValue,
}

/// `pmix_data_array_t`.
#[repr(C)]
struct DataArray {
    kind: u16,
    size: usize,
    array: *const c_void,
}

/// `pmix_op_cbfunc_t`.
pub type OpDone = unsafe extern "C" fn(c_int, *mut c_void);
/// `pmix_release_cbfunc_t`.
pub type Release = unsafe extern "C" fn(*mut c_void);
/// `pmix_modex_cbfunc_t`.
pub type ModexDone =
    unsafe extern "C" fn(c_int, *const c_char, usize, *mut c_void, Option<Release>, *mut c_void);
/// `pmix_dmodex_response_fn_t`.
pub type Fetched = unsafe extern "C" fn(c_int, *mut c_char, usize, *mut c_void);

/// `pmix_server_module_t`: what is served, by the places that the Standard gives the functions. Longer than any version has
/// it, and null behind what we know: not served.
#[repr(C)]
pub struct Module {
    pub client_connected:
        Option<unsafe extern "C" fn(*const Proc, *mut c_void, Option<OpDone>, *mut c_void) -> c_int>,
    pub client_finalized:
        Option<unsafe extern "C" fn(*const Proc, *mut c_void, Option<OpDone>, *mut c_void) -> c_int>,
    pub abort: Option<
        unsafe extern "C" fn(
            *const Proc,
            *mut c_void,
            c_int,
            *const c_char,
            *mut Proc,
            usize,
            Option<OpDone>,
            *mut c_void,
        ) -> c_int,
    >,
    pub fence: Option<
        unsafe extern "C" fn(
            *const Proc,
            usize,
            *const RawInfo,
            usize,
            *mut c_char,
            usize,
            Option<ModexDone>,
            *mut c_void,
        ) -> c_int,
    >,
    pub direct_modex: Option<
        unsafe extern "C" fn(*const Proc, *const RawInfo, usize, Option<ModexDone>, *mut c_void) -> c_int,
    >,
    /// publish, lookup, unpublish, spawn, connect, disconnect: the library answers that they are not supported.
    pub none: [*const c_void; 6],
    pub register_events: Option<
        unsafe extern "C" fn(*mut c_int, usize, *const RawInfo, usize, Option<OpDone>, *mut c_void) -> c_int,
    >,
    pub deregister_events:
        Option<unsafe extern "C" fn(*mut c_int, usize, Option<OpDone>, *mut c_void) -> c_int>,
    pub rest: [*const c_void; 51],
}

/// What is told of something, under a key of the Standard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Info {
    /// The key's text (`pmix.…`).
    pub key: &'static str,
    /// What.
    pub value: Value,
}

/// In which type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// `bool`.
    Flag(bool),
    /// `char *`. What has a NUL is cut there.
    Text(String),
    /// `uint16_t`.
    Small(u16),
    /// `uint32_t`.
    Number(u32),
    /// `pmix_rank_t`.
    Rank(u32),
    /// An array of further ones.
    All(Vec<Info>),
}

/// Keeps what infos point to for as long as the library reads them.
#[derive(Default)]
pub struct Arrays {
    texts: Vec<CString>,
    infos: Vec<Vec<RawInfo>>,
    arrays: Vec<Vec<DataArray>>,
}

impl Arrays {
    /// The infos as the library has them, and how many. They are good for as long as this lives.
    pub fn of(&mut self, infos: &[Info]) -> (*mut RawInfo, usize) {
        let mut all: Vec<RawInfo> = infos.iter().filter_map(|info| self.raw(info)).collect();
        let whole = (all.as_mut_ptr(), all.len());
        // The vector moves, and what it holds does not.
        self.infos.push(all);
        whole
    }

    fn raw(&mut self, info: &Info) -> Option<RawInfo> {
        let mut data = Data { room: [0; 3] };
        let kind = match &info.value {
            Value::Flag(flag) => {
                data.flag = *flag;
                1
            }
            Value::Text(text) => {
                let text = CString::new(text.split('\0').next().unwrap_or_default()).ok()?;
                data.pointer = text.as_ptr().cast();
                self.texts.push(text);
                3
            }
            Value::Small(n) => {
                data.small = *n;
                13
            }
            Value::Number(n) => {
                data.number = *n;
                14
            }
            Value::Rank(n) => {
                data.number = *n;
                40
            }
            Value::All(infos) => {
                let (array, size) = self.of(infos);
                let array = vec![DataArray { kind: 24, size, array: array.cast_const().cast() }];
                data.pointer = array.as_ptr().cast();
                self.arrays.push(array);
                39
            }
        };
        Some(RawInfo { key: into_room(info.key)?, flags: 0, value: RawValue { kind, data } })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::mem::{offset_of, size_of};
    use std::path::Path;
    use std::process::Command;

    /// What a C compiler makes of the installed headers; nothing where there are none.
    fn of_headers(expressions: &[&str]) -> Option<Vec<usize>> {
        let places = [
            "/usr/include",
            "/usr/lib/x86_64-linux-gnu/pmix2/include",
            "/usr/lib/aarch64-linux-gnu/pmix2/include",
        ];
        let include = places.into_iter().find(|dir| Path::new(dir).join("pmix_server.h").exists())?;
        let dir = tempfile::tempdir().unwrap();
        let (source, program) = (dir.path().join("sizes.c"), dir.path().join("sizes"));
        let lines: String =
            expressions.iter().map(|e| format!("printf(\"%zu\\n\", (size_t)({e}));\n")).collect();
        let text = format!(
            "#include <pmix_server.h>\n#include <stddef.h>\n#include <stdio.h>\nint main(void) {{\n{lines}return 0;\n}}\n"
        );
        std::fs::write(&source, text).unwrap();
        let compiled =
            Command::new("cc").arg("-I").arg(include).arg(&source).arg("-o").arg(&program).status();
        assert!(compiled.unwrap().success());
        let out = Command::new(&program).output().unwrap();
        Some(String::from_utf8(out.stdout).unwrap().lines().map(|n| n.parse().unwrap()).collect())
    }

    #[test]
    fn the_types_are_those_of_the_installed_headers() {
        let pairs: &[(&str, usize)] = &[
            ("sizeof(pmix_proc_t)", size_of::<Proc>()),
            ("offsetof(pmix_proc_t, rank)", offset_of!(Proc, rank)),
            ("sizeof(pmix_value_t)", size_of::<RawValue>()),
            ("offsetof(pmix_value_t, data)", offset_of!(RawValue, data)),
            ("sizeof(pmix_info_t)", size_of::<RawInfo>()),
            ("offsetof(pmix_info_t, flags)", offset_of!(RawInfo, flags)),
            ("offsetof(pmix_info_t, value)", offset_of!(RawInfo, value)),
            ("sizeof(pmix_data_array_t)", size_of::<DataArray>()),
            ("offsetof(pmix_data_array_t, array)", offset_of!(DataArray, array)),
            ("offsetof(pmix_server_module_t, fence_nb)", offset_of!(Module, fence)),
            ("offsetof(pmix_server_module_t, direct_modex)", offset_of!(Module, direct_modex)),
            ("offsetof(pmix_server_module_t, publish)", offset_of!(Module, none)),
            ("offsetof(pmix_server_module_t, register_events)", offset_of!(Module, register_events)),
            ("offsetof(pmix_server_module_t, listener)", offset_of!(Module, rest)),
            ("PMIX_BOOL", 1),
            ("PMIX_STRING", 3),
            ("PMIX_UINT16", 13),
            ("PMIX_UINT32", 14),
            ("PMIX_INFO", 24),
            ("PMIX_DATA_ARRAY", 39),
            ("PMIX_PROC_RANK", 40),
            ("PMIX_RANK_WILDCARD", WILDCARD as usize),
            ("-(PMIX_OPERATION_SUCCEEDED)", 157),
            ("-(PMIX_ERR_NOT_FOUND)", 46),
            ("sizeof(pmix_server_module_t) <= 64 * sizeof(void *)", 1),
        ];
        let names: Vec<&str> = pairs.iter().map(|(e, _)| *e).collect();
        let Some(found) = of_headers(&names) else { return };
        for ((name, ours), theirs) in pairs.iter().zip(found) {
            assert_eq!(*ours, theirs, "{name}");
        }
        assert_eq!(size_of::<Module>(), 64 * size_of::<*const c_void>());
    }

    #[test]
    fn infos_are_laid_out_as_they_are_told() {
        let mut arrays = Arrays::default();
        let infos = [
            Info { key: "pmix.a", value: Value::Text("x\0y".into()) },
            Info { key: "pmix.b", value: Value::All(vec![Info { key: "pmix.c", value: Value::Small(7) }]) },
        ];
        let (at, number) = arrays.of(&infos);
        assert_eq!((number, at.is_null()), (2, false));
        let last = arrays.infos.last().unwrap();
        assert_eq!(last.iter().map(|i| i.value.kind).collect::<Vec<_>>(), [3, 39]);
        assert_eq!((arrays.texts[0].as_bytes(), arrays.arrays[0][0].size), (b"x".as_slice(), 1));
        assert!(name(&"n".repeat(NAME_ROOM)).is_none());
        assert!(name("1.0").is_some() && name("").is_none() && name("a b").is_none());
    }
}
