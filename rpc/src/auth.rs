//! The one table of who may call what. Whose job or node it is about is decided later, by the core.

include!("generated/methods.rs");

/// What a caller is, by the connection it came through and the name it resolved to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Root, the controller's own user, or named in the configuration; on the host, never inside a job.
    Administrator,
    /// Named as one in the configuration; on the host, never inside a job.
    Operator,
    /// Anyone else on the host. Whoever coordinates an account is one: of which jobs is the core's to judge.
    User,
    /// A client inside a job's container or script, vouched for by its node. Never an administrator, whoever
    /// the job belongs to.
    Inside,
    /// An agent, on the private socket.
    Agent,
}

impl Role {
    /// All of them.
    pub const ALL: &[Role] = &[Role::Administrator, Role::Operator, Role::User, Role::Inside, Role::Agent];
}

/// Whether a role may call a method. A method without a row does not compile.
pub fn allowed(method: Method, role: Role) -> bool {
    use Role::{Administrator, Agent, Inside, Operator, User};
    let roles: &[Role] = match method {
        // Anyone who can connect: liveness.
        Method::ClusterPing => &[Administrator, Operator, User, Inside, Agent],
        // Reads. Scripts and environments are in none of the answers.
        Method::ClusterStatus
        | Method::ClusterGetConfig
        | Method::ClusterListJobs
        | Method::ClusterListNodes
        | Method::ClusterListPartitions
        | Method::ClusterAccounting
        | Method::ClusterWatchJob => &[Administrator, Operator, User, Inside],
        // Names and public keys.
        Method::ClusterListMembers => &[Administrator, Operator, User],
        // Delays the caller's own reads and nothing else.
        Method::ClusterEndSeen => &[Administrator, Operator, User, Inside],
        // Changes to jobs: the core checks whose job it is.
        Method::ClusterSubmit
        | Method::ClusterCreateStep
        | Method::ClusterCancel
        | Method::ClusterHold
        | Method::ClusterRelease
        | Method::ClusterRequeue
        | Method::ClusterEndAllocation
        | Method::ClusterHoldLease => &[Administrator, Operator, User, Inside],
        // Of their own images: each node asks for the caller, and judges.
        Method::ClusterPullImage => &[Administrator, Operator, User],
        // What nodes do.
        Method::ClusterUpdateNode => &[Administrator, Operator],
        // Changes to the cluster.
        Method::ClusterShutdown | Method::ClusterReconfigure => &[Administrator],
        // Who belongs to the cluster. Joining itself has no method: see `Request::Enrol`.
        Method::ClusterCreateToken
        | Method::ClusterRevokeToken
        | Method::ClusterListTokens
        | Method::ClusterApproveMember
        | Method::ClusterRemoveMember => &[Administrator],
        // Who decided what.
        Method::ClusterAudit => &[Administrator],
        // The agents' link.
        Method::NodeSession => &[Agent],
    };
    roles.contains(&role)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every method with every role, written out: a change of the table shows up here.
    #[test]
    fn every_method_and_role() {
        let mut table = String::new();
        for method in Method::ALL {
            let cells: String =
                Role::ALL.iter().map(|role| if allowed(*method, *role) { 'x' } else { '.' }).collect();
            table.push_str(&format!("{cells} {}\n", method.path()));
        }
        let expected = "\
xxxxx /berth.v1.Cluster/Ping
xxxx. /berth.v1.Cluster/Status
xxxx. /berth.v1.Cluster/GetConfig
x.... /berth.v1.Cluster/Shutdown
x.... /berth.v1.Cluster/Reconfigure
xxxx. /berth.v1.Cluster/Submit
xxxx. /berth.v1.Cluster/CreateStep
xxxx. /berth.v1.Cluster/Cancel
xxxx. /berth.v1.Cluster/Hold
xxxx. /berth.v1.Cluster/Release
xxxx. /berth.v1.Cluster/Requeue
xx... /berth.v1.Cluster/UpdateNode
xxxx. /berth.v1.Cluster/EndAllocation
xxx.. /berth.v1.Cluster/PullImage
xxxx. /berth.v1.Cluster/ListJobs
xxxx. /berth.v1.Cluster/ListNodes
xxxx. /berth.v1.Cluster/ListPartitions
xxxx. /berth.v1.Cluster/Accounting
xxxx. /berth.v1.Cluster/WatchJob
xxxx. /berth.v1.Cluster/HoldLease
xxxx. /berth.v1.Cluster/EndSeen
x.... /berth.v1.Cluster/CreateToken
x.... /berth.v1.Cluster/RevokeToken
x.... /berth.v1.Cluster/ListTokens
xxx.. /berth.v1.Cluster/ListMembers
x.... /berth.v1.Cluster/ApproveMember
x.... /berth.v1.Cluster/RemoveMember
x.... /berth.v1.Cluster/Audit
....x /berth.v1.Node/Session
";
        assert_eq!(table, expected);
    }
}
