//! Which machines belong to the cluster: tokens, joining, keys, approval and removal.

use super::Cluster;
use super::restore::{RestoreError, bad, check_version};
use super::timers::Timer;
use crate::event::Effect;
use crate::rows::{MemberRow, ROW_VERSION, TokenRow};
use crate::store::Write;
use berth_model::ids::NodeName;
use berth_model::member::{
    KeyId, LONGEST_TTL, MOST_USES, MemberRole, MemberState, NewToken, SHORTEST_TTL, check_host_name,
    is_digest, is_token_id,
};
use berth_model::request::{Actor, Refusal, RefusalCode, Response};
use berth_model::time::Span;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

/// For how long a machine that never saw the answer may ask again with a token that is used up by then.
const LOST_ANSWER: Span = Span::from_mins(10);

/// One text for every reason, so that nobody learns which tokens there are.
const NOT_VALID: &str = "this token is not valid (any more): have another one made with 'berth token create' on \
                         the controller";

fn refuse<T>(code: RefusalCode, text: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal::new(code, text))
}

/// Whether two texts are the same, in a time that does not tell where they differ.
fn same(a: &str, b: &str) -> bool {
    let differ = a.bytes().zip(b.bytes()).fold(0, |differ, (a, b)| differ | (a ^ b));
    a.len() == b.len() && std::hint::black_box(differ) == 0
}

/// The first of them, and how many more there are.
fn some_of(held: &[String]) -> String {
    let more = held.len().saturating_sub(10);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{}{more}", held.get(..10).unwrap_or(held).join(", "))
}

impl Cluster {
    pub(super) fn create_token(
        &mut self,
        actor: &Actor,
        id: String,
        hash: String,
        token: &NewToken,
    ) -> Result<Response, Refusal> {
        let NewToken { role, ttl, uses, approval, administrators } = *token;
        if ttl < SHORTEST_TTL || ttl > LONGEST_TTL {
            return refuse(
                RefusalCode::Invalid,
                "a token is good for 1 minute at least and 30 days at most: choose another --ttl",
            );
        }
        if uses == 0 || uses > MOST_USES {
            return refuse(
                RefusalCode::Invalid,
                format!("with one token 1 to {MOST_USES} machines can join: choose another --uses"),
            );
        }
        if administrators && role != MemberRole::Login {
            return refuse(
                RefusalCode::Invalid,
                "only login nodes vouch for users: --administrators goes with --role login alone",
            );
        }
        if !is_token_id(&id) || !is_digest(&hash) {
            return refuse(RefusalCode::Internal, "the controller made a token that is none");
        }
        self.drop_expired_tokens();
        if self.tokens.contains_key(&id) {
            return refuse(RefusalCode::Unavailable, format!("there is a token {id} already; try again"));
        }
        let row = TokenRow {
            version: ROW_VERSION,
            id: id.clone(),
            hash,
            role,
            created: self.clock,
            by: actor.identity.user.clone(),
            expires: self.clock + ttl,
            uses_left: uses,
            approval,
            administrators,
        };
        self.timers.insert((row.expires, Timer::Token));
        let mut what = format!("made token {id} for {uses} {role} node{}", if uses == 1 { "" } else { "s" });
        if approval {
            what.push_str(", to be approved");
        }
        if administrators {
            what.push_str(", which may vouch for operators and administrators");
        }
        self.put_token(row);
        self.note(actor, what);
        Ok(Response::Done)
    }

    pub(super) fn revoke_token(&mut self, actor: &Actor, id: &str) -> Result<Response, Refusal> {
        self.drop_expired_tokens();
        if !self.tokens.contains_key(id) {
            let shown: String = id.chars().take(64).flat_map(char::escape_default).collect();
            let text =
                format!("there is no token '{shown}', or it is used up or expired (see 'berth token ls')");
            return refuse(RefusalCode::NotFound, text);
        }
        self.delete_token(id);
        self.note(actor, format!("revoked token {id}"));
        Ok(Response::Done)
    }

    /// Takes what has expired out of the books.
    pub(super) fn drop_expired_tokens(&mut self) {
        let now = self.clock;
        let over: Vec<String> =
            self.tokens.values().filter(|t| t.expires <= now).map(|t| t.id.clone()).collect();
        for id in over {
            self.delete_token(&id);
        }
    }

    fn put_token(&mut self, row: TokenRow) {
        let row = Arc::new(row);
        self.tokens.insert(row.id.clone(), row.clone());
        self.out.last.push(Write::PutToken(row));
    }

    fn delete_token(&mut self, id: &str) {
        self.tokens.remove(id);
        self.out.last.push(Write::DeleteToken(id.to_string()));
    }

    pub(super) fn put_member(&mut self, row: MemberRow) -> Response {
        let row = Arc::new(row);
        if let Some(old) = self.members.insert(row.name.clone(), row.clone()) {
            self.keys.remove(&old.key);
        }
        self.keys.insert(row.key.clone(), row.name.clone());
        self.departed.remove(&row.name);
        self.strange.drop_own(&row.name);
        self.is_known_now(&row.name, row.role);
        let response = Response::Enrolled { member: row.info() };
        self.out.last.push(Write::PutMember(row));
        response
    }

    /// The token, if the secret is its own and it is good for another machine.
    fn valid_token(&self, id: &str, hash: &str) -> Result<Arc<TokenRow>, Refusal> {
        let found = self.tokens.get(id);
        let good = same(found.map_or("", |t| &t.hash), hash);
        match found.filter(|t| good && t.expires > self.clock && t.uses_left > 0) {
            Some(token) => Ok(token.clone()),
            None => refuse(RefusalCode::Denied, NOT_VALID),
        }
    }

    /// The machine that has this name. As names of hosts they are the same however they are written (RFC 4343).
    pub(super) fn taken(&self, name: &NodeName) -> Option<&NodeName> {
        self.members.keys().chain(self.nodes.keys()).find(|n| n.0.eq_ignore_ascii_case(&name.0))
    }

    pub(super) fn enrol(
        &mut self,
        actor: &Actor,
        token: &str,
        hash: &str,
        key: KeyId,
        name: NodeName,
        from: String,
    ) -> Result<Response, Refusal> {
        let now = self.clock;
        let known = self.members.get(&name).filter(|m| m.key == key).cloned();
        // The token may be gone with the use that this machine made of it.
        if let Some(member) = &known
            && member.token == token
            && is_digest(&member.token_hash)
            && same(&member.token_hash, hash)
            && now < member.joined + LOST_ANSWER
        {
            return Ok(Response::Enrolled { member: member.info() });
        }
        let token = self.valid_token(token, hash)?;
        if let Some(member) = known {
            if member.role != token.role {
                let text = format!(
                    "{name} is a {} node already, and this token is for {} nodes: 'berth node remove {name}' on the \
                     controller first, or have a token made for its role",
                    member.role, token.role
                );
                return refuse(RefusalCode::WrongState, text);
            }
            return Ok(Response::Enrolled { member: member.info() });
        }
        if let Err(e) = KeyId::parse(&key.0) {
            return refuse(RefusalCode::Invalid, e.to_string());
        }
        if let Err(e) = check_host_name(&name.0) {
            return refuse(RefusalCode::Invalid, e.to_string());
        }
        if let Some(other) = self.keys.get(&key) {
            let text = format!(
                "the key of this machine is that of {other}, which has joined already: 'berth node remove {other}' on \
                 the controller if it has another name now, or have a new key made if this is a copy of it"
            );
            return refuse(RefusalCode::WrongState, text);
        }
        if let Some(other) = self.taken(&name) {
            let text = format!(
                "there is a machine {other} in the cluster already, with another key: 'berth node remove {other}' on \
                 the controller if it is gone or was installed anew; where this is another machine that is called so, as in two \
                 domains, 'berth join --name $(hostname -f)' has it join under its full name"
            );
            return refuse(RefusalCode::WrongState, text);
        }
        let member = MemberRow {
            version: ROW_VERSION,
            name: name.clone(),
            role: token.role,
            state: if token.approval { MemberState::Pending } else { MemberState::Approved },
            key,
            joined: now,
            token: token.id.clone(),
            token_hash: token.hash.clone(),
            from,
            renewed: now,
            administrators: token.administrators,
            leaving: false,
        };
        match token.uses_left - 1 {
            0 => self.delete_token(&token.id),
            left => self.put_token(TokenRow { uses_left: left, ..(*token).clone() }),
        }
        let what = format!(
            "{name} joined as {} node from {} with key {}{}",
            member.role,
            member.from,
            member.key.short(),
            if token.approval { ", to be approved" } else { "" }
        );
        self.note_as(actor, format!("token {}", token.id), what);
        Ok(self.put_member(member))
    }

    pub(super) fn renew(
        &mut self,
        actor: &Actor,
        name: &NodeName,
        old: &KeyId,
        new: KeyId,
    ) -> Result<Response, Refusal> {
        let Some(member) = self.members.get(name).cloned() else {
            let text =
                format!("{name} does not belong to this cluster (any more): it can join again with a token");
            return refuse(RefusalCode::NotFound, text);
        };
        if member.key == new {
            return Ok(Response::Enrolled { member: member.info() });
        }
        if member.key != *old {
            let text = format!("{name} has another key by now: what has the old one is not trusted any more");
            return refuse(RefusalCode::Denied, text);
        }
        if let Err(e) = KeyId::parse(&new.0) {
            return refuse(RefusalCode::Invalid, e.to_string());
        }
        if let Some(other) = self.keys.get(&new) {
            let text = format!("the new key of {name} is that of {other}: have another one made");
            return refuse(RefusalCode::WrongState, text);
        }
        // Whoever has a copy of the old key can do that as well as the machine.
        let what = format!("{name} exchanged its key {} for {}", member.key.short(), new.short());
        self.note_as(actor, format!("node {name}"), what);
        let told = self.exchange.rekeyed(name, member.key.0.clone(), self.clock);
        self.tell_peers(told);
        Ok(self.put_member(MemberRow { key: new, renewed: self.clock, ..(*member).clone() }))
    }

    pub(super) fn approve_member(&mut self, actor: &Actor, name: &NodeName) -> Result<Response, Refusal> {
        let Some(member) = self.members.get(name).cloned() else {
            if self.is_unknown(name) {
                return self.approve_unknown(actor, name);
            }
            let text = format!("no machine {name} has joined (see 'berth node ls')");
            return refuse(RefusalCode::NotFound, text);
        };
        if member.state == MemberState::Pending {
            self.note(actor, format!("approved {name} with key {}", member.key.short()));
            self.put_member(MemberRow { state: MemberState::Approved, ..(*member).clone() });
        }
        Ok(Response::Done)
    }

    /// Removes a machine at once, if it can be done without ending runs that its agent can still tell of. Whether it was.
    pub(super) fn remove_member(
        &mut self,
        actor: &Actor,
        name: &NodeName,
        force: bool,
    ) -> Result<bool, Refusal> {
        let member = self.members.get(name);
        let node = self.nodes.get(name);
        let connected = node.is_some_and(|n| n.link.is_some());
        if member.is_none() && node.is_none() && self.is_unknown(name) {
            self.give_up_unknown(actor, name);
            return Ok(true);
        }
        if member.is_none() && node.is_none() {
            let text = format!("there is no machine {name} in the cluster (see 'berth node ls')");
            return refuse(RefusalCode::NotFound, text);
        }
        if member.is_none() && connected {
            let text = format!(
                "{name} is the controller's own machine, and its agent is connected: stop that first, or take the node \
                 out of service with 'scontrol update NodeName={name} State=DRAIN Reason=...'"
            );
            return refuse(RefusalCode::WrongState, text);
        }
        let held = self.held_on(name);
        if !held.is_empty() && !force {
            let text = format!(
                "jobs have something on {name}: {}; drain it and wait, or give --force: they are ended then (NODE_FAIL)",
                some_of(&held)
            );
            return refuse(RefusalCode::WrongState, text);
        }
        if !held.is_empty() && connected {
            return Ok(false);
        }
        self.remove_at_once(actor, name, held.len());
        Ok(true)
    }

    /// Takes a machine out, as somebody has asked. `jobs`: how many had something there.
    pub(super) fn remove_at_once(&mut self, actor: &Actor, name: &NodeName, jobs: usize) {
        let key = self.members.get(name).map(|member| format!(" with key {}", member.key.short()));
        self.take_out(name, format!("{} removed {name} from the cluster", actor.identity.user));
        let mut what = format!("removed {name}{}", key.unwrap_or_default());
        if jobs > 0 {
            what.push_str(&format!(" with {jobs} jobs on it"));
        }
        self.note(actor, what);
    }

    /// A machine's own word that it belongs to the cluster no longer: good for itself alone, and while no job needs it.
    pub(super) fn leave(&mut self, actor: &Actor, name: &NodeName, key: &KeyId) -> Result<Response, Refusal> {
        let Some(member) = self.members.get(name) else {
            let text = format!("{name} does not belong to this cluster (any more)");
            return refuse(RefusalCode::NotFound, text);
        };
        // Whoever has it may be another machine by now.
        if member.key != *key {
            let text = format!("{name} has another key by now: what has the old one is not trusted any more");
            return refuse(RefusalCode::Denied, text);
        }
        let held = self.held_on(name);
        if !held.is_empty() {
            let text = format!(
                "jobs have something on {name}: {}; 'berth up' there and \
                 'scontrol update NodeName={name} State=DRAIN Reason=...' on the controller let them end, and \
                 'berth node remove --force {name}' on the controller gives them up (NODE_FAIL)",
                some_of(&held)
            );
            return refuse(RefusalCode::WrongState, text);
        }
        self.take_out(name, format!("{name} left the cluster"));
        // Whoever has a copy of the key can do that as well as the machine.
        let what = format!("{name} left the cluster with key {}", key.short());
        self.note_as(actor, format!("node {name}"), what);
        Ok(Response::Done)
    }

    /// The jobs that have something on a node.
    fn held_on(&self, name: &NodeName) -> Vec<String> {
        let node = self.nodes.get(name);
        node.into_iter().flat_map(|n| n.held.keys()).map(|(id, _)| id.to_string()).collect()
    }

    /// Takes a machine out of the books, as a member and as a node: its key is good for nothing any more, and its name is free.
    fn take_out(&mut self, name: &NodeName, why: String) {
        self.fail_on_node(name);
        let member = self.members.get(name).cloned();
        let key = member.as_ref().map(|member| member.key.0.clone());
        let told = self.exchange.revoked(name, key, self.clock);
        self.tell_peers(told);
        if self.nodes.remove(name).is_some() {
            self.out.nodes.remove(name);
            self.out.last.push(Write::DeleteNode(name.clone()));
        }
        self.removals.remove(name);
        self.strange.drop_own(name);
        self.ahead.retain(|(node, ..)| node != name);
        self.looking.stale = true;
        if let Some(member) = member {
            self.members.remove(name);
            self.keys.remove(&member.key);
            self.out.last.push(Write::DeleteMember(name.clone()));
            self.is_gone(name);
        } else {
            self.await_no_more(name);
        }
        self.out.effects.push(Effect::CutOff { node: name.clone(), why });
    }

    pub(super) fn restore_members(
        &mut self,
        members: Vec<MemberRow>,
        tokens: Vec<TokenRow>,
    ) -> Result<(), RestoreError> {
        for row in members {
            let name = format!("member {}", row.name);
            check_version(|| name.clone(), row.version)?;
            if KeyId::parse(&row.key.0).is_err() || check_host_name(&row.name.0).is_err() {
                return bad(name, "its name or its key is none");
            }
            if let Some(other) = self.keys.insert(row.key.clone(), row.name.clone()) {
                return bad(name, format!("it has the same key as {other}"));
            }
            if self.members.insert(row.name.clone(), Arc::new(row)).is_some() {
                return bad(name, "it is stored twice");
            }
        }
        for row in tokens {
            let name = format!("token {}", row.id);
            check_version(|| name.clone(), row.version)?;
            if !is_token_id(&row.id) || !is_digest(&row.hash) || row.uses_left == 0 {
                return bad(name, "its id, its hash or its uses are none");
            }
            self.timers.insert((row.expires, Timer::Token));
            if self.tokens.insert(row.id.clone(), Arc::new(row)).is_some() {
                return bad(name, "it is stored twice");
            }
        }
        Ok(())
    }

    /// The network address of a node, as it told it or else as it joined; empty for the one on the controller's machine, of which every
    /// other knows one. A node's word goes into the environment of others' tasks: it is an address, or it does not count.
    pub(super) fn address_of(&self, node: &NodeName) -> Option<String> {
        let (told, member) = (self.exchange.address(node), self.members.get(node));
        let told =
            told.and_then(|told| told.parse::<SocketAddr>().ok()).map(|address| address.ip().to_canonical());
        // Only by where it joined from is one on the controller's machine: its own word for that would have others look for it there.
        let told = told.filter(|ip| is_found_elsewhere(ip) && !ip.is_loopback());
        let Some(member) = member else { return Some(told.map(|ip| ip.to_string()).unwrap_or_default()) };
        let joined =
            || member.from.parse::<IpAddr>().ok().map(|ip| ip.to_canonical()).filter(is_found_elsewhere);
        let ip = told.or_else(joined)?;
        // It joined on the controller's own machine.
        Some(if ip.is_loopback() { String::new() } else { ip.to_string() })
    }

    /// Checks the books of members and keys.
    pub(super) fn audit_members(&self) -> Result<(), String> {
        for (name, member) in &self.members {
            if member.name != *name || self.keys.get(&member.key) != Some(name) {
                return Err(format!("member {name} is not found by its key"));
            }
        }
        if self.keys.len() != self.members.len() {
            return Err(format!("{} keys are known of {} members", self.keys.len(), self.members.len()));
        }
        match self.tokens.iter().find(|(id, t)| t.id != **id || t.uses_left == 0) {
            Some((id, _)) => Err(format!("token {id} is good for nothing and is still there")),
            None => Ok(()),
        }
    }
}

/// Whether an address means the same machine on others: which network a link-local one is in, each machine numbers for itself.
fn is_found_elsewhere(ip: &IpAddr) -> bool {
    match ip {
        IpAddr::V6(ip) if ip.is_unicast_link_local() => false,
        ip => !ip.is_unspecified(),
    }
}
