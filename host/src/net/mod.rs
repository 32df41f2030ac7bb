//! What connects a pod with the network: ports of this machine that lead to ports of the pod. Knows sockets and how the guest is reached; knows
//! no manifest and no pod.

pub mod ports;
pub mod relay;
