//! Members, tokens and the audit log on the wire.

use super::{Field, Malformed, enums, structs};
use berth_model::member::{AuditInfo, KeyId, MemberInfo, MemberRole, MemberState, NewToken, TokenInfo};
use berth_model::rights::Role;

enums! {
    MemberRole { Compute, Login }
    MemberState { Pending, Approved }
    Role { Coordinator, Operator, Administrator }
}

structs! {
    MemberInfo { name, role, state, key, joined, token, from, renewed, ends, administrators }
    NewToken { role, ttl, uses, approval, administrators }
    TokenInfo { id, role, created, by, expires, uses_left, approval, administrators }
    AuditInfo { number, at, uid, user, role, inside, via, what }
}

impl Field<String> for KeyId {
    fn put(&self) -> String {
        self.0.clone()
    }
    fn get(wire: String) -> Result<Self, Malformed> {
        KeyId::parse(&wire).map_err(|_| Malformed::new("not the digest of a key"))
    }
}
