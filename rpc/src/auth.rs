//! The one table of who may call what. Whose job or node it is about is decided later, by the core.

include!("generated/methods.rs");

/// What a caller is, by the connection it came through and the name it resolved to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Root, the controller's own user, or named in the configuration; on the host, never inside a job.
    Administrator,
    /// Anyone else on the host.
    User,
    /// A client inside a job's container or script, vouched for by its node. Never an administrator, whoever
    /// the job belongs to.
    Inside,
    /// An agent, on the private socket.
    Agent,
}

impl Role {
    /// All of them.
    pub const ALL: &[Role] = &[Role::Administrator, Role::User, Role::Inside, Role::Agent];
}

/// Whether a role may call a method. A method without a row does not compile.
pub fn allowed(method: Method, role: Role) -> bool {
    use Role::{Administrator, Agent, Inside, User};
    let roles: &[Role] = match method {
        // Anyone who can connect: liveness.
        Method::ClusterPing => &[Administrator, User, Inside, Agent],
        // Reads. Scripts and environments are in none of the answers.
        Method::ClusterStatus
        | Method::ClusterGetConfig
        | Method::ClusterListJobs
        | Method::ClusterListNodes
        | Method::ClusterListPartitions
        | Method::ClusterAccounting
        | Method::ClusterWatchJob => &[Administrator, User, Inside],
        // Names and public keys.
        Method::ClusterListMembers => &[Administrator, User],
        // Delays the caller's own reads and nothing else.
        Method::ClusterEndSeen => &[Administrator, User, Inside],
        // Changes to jobs: the core checks whose job it is.
        Method::ClusterSubmit
        | Method::ClusterCreateStep
        | Method::ClusterCancel
        | Method::ClusterHold
        | Method::ClusterRelease
        | Method::ClusterRequeue
        | Method::ClusterEndAllocation
        | Method::ClusterHoldLease => &[Administrator, User, Inside],
        // Of their own images: each node asks for the caller, and judges.
        Method::ClusterPullImage => &[Administrator, User],
        // Changes to the cluster.
        Method::ClusterUpdateNode | Method::ClusterShutdown | Method::ClusterReconfigure => &[Administrator],
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
xxxx /berth.v1.Cluster/Ping
xxx. /berth.v1.Cluster/Status
xxx. /berth.v1.Cluster/GetConfig
x... /berth.v1.Cluster/Shutdown
x... /berth.v1.Cluster/Reconfigure
xxx. /berth.v1.Cluster/Submit
xxx. /berth.v1.Cluster/CreateStep
xxx. /berth.v1.Cluster/Cancel
xxx. /berth.v1.Cluster/Hold
xxx. /berth.v1.Cluster/Release
xxx. /berth.v1.Cluster/Requeue
x... /berth.v1.Cluster/UpdateNode
xxx. /berth.v1.Cluster/EndAllocation
xx.. /berth.v1.Cluster/PullImage
xxx. /berth.v1.Cluster/ListJobs
xxx. /berth.v1.Cluster/ListNodes
xxx. /berth.v1.Cluster/ListPartitions
xxx. /berth.v1.Cluster/Accounting
xxx. /berth.v1.Cluster/WatchJob
xxx. /berth.v1.Cluster/HoldLease
xxx. /berth.v1.Cluster/EndSeen
x... /berth.v1.Cluster/CreateToken
x... /berth.v1.Cluster/RevokeToken
x... /berth.v1.Cluster/ListTokens
xx.. /berth.v1.Cluster/ListMembers
x... /berth.v1.Cluster/ApproveMember
x... /berth.v1.Cluster/RemoveMember
x... /berth.v1.Cluster/Audit
...x /berth.v1.Node/Session
";
        assert_eq!(table, expected);
    }
}
