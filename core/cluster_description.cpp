#include "core/cluster_file.hpp"

namespace shardwright {

std::string describeClusterFormat()
{
    return R"(A cluster file describes one kind of node and how nodes are linked. Save it anywhere and name it by its path
(--cluster my-box.json), or put the same object into a scenario under "cluster". `shardplan clusters` lists those that
ship; copying the nearest one is the quickest start.

A complete example, a workstation with two RTX 4090:

{
  "schema": "shardwright-cluster/1",
  "name": "my workstation",
  "gpu": {
    "name": "GeForce RTX 4090",
    "compute_capability": 89,
    "memory": "23.64 GiB",
    "memory_bandwidth": "1008 GB/s",
    "peak_flops": {"bf16": "165.2 TFLOP/s", "fp16": "165.2 TFLOP/s", "fp32": "82.6 TFLOP/s"}
  },
  "gpus_per_node": 2,
  "nodes": 1,
  "intra_node": {"kind": "pcie", "bandwidth": "20 GB/s", "latency": "6 us"},
  "host": {"memory": "128 GiB", "memory_bandwidth": "60 GB/s", "cpu_cores": 16, "pcie_bandwidth": "24 GB/s"},
  "nvme": {
    "capacity": {"value": 2, "unit": "TB", "tag": "vendor", "source": "data sheet of the drive"},
    "read_bandwidth": "6.5 GB/s",
    "write_bandwidth": "5 GB/s"
  }
}

A figure is a number with a unit, as text ("23.64 GiB") or with its origin:
  {"value": 23.64, "unit": "GiB", "tag": "measured", "source": "torch.cuda.get_device_properties(0).total_memory"}
  tag     vendor (a data sheet), measured, or assumed. The short text counts as assumed. Explanations repeat the source.
  units   memory: bytes MB MiB GB GiB TB TiB PB PiB     bandwidth: bytes/s MB/s GB/s GiB/s TB/s Gbit/s
          compute: FLOP/s GFLOP/s TFLOP/s PFLOP/s       time: s ms us ns          GB is 1e9 bytes, GiB is 2^30 bytes
          power: W kW                                   price: $/h

gpu
  name                product name, for messages
  compute_capability  major x 10 + minor: 70 V100, 75 T4, 80 A100, 86 RTX 3090, 89 RTX 4090 and L40S, 90 H100, 100 B200
  multiprocessors     streaming multiprocessors (SMs); may be left out
  power               at full load (TDP), as "400 W"; without it the result says nothing of energy
  memory              what the driver gives to programs, not the number on the box: torch.cuda.get_device_properties(0)
                      .total_memory, or "total capacity" in an out-of-memory message
  memory_bandwidth    of the GPU's own memory
  peak_flops          dense FLOP/s by dtype (bf16, fp16, fp32, fp8, int8, ...), without sparsity. Leave out what the GPU
                      cannot do.
  rates               only with compute_capability 1, the host's own processor as `shardrun calibrate` describes it, one
                      "GPU" a rank: attention_forward and attention_backward in FLOP/s; pointwise, optimizer and copy in
                      bytes/s read and written
gpus_per_node         GPUs of one node
nodes                 number of nodes (1 when absent); a scenario or --nodes can change it
intra_node            link among the GPUs of a node; not needed for a single GPU
  kind                nvlink, nvswitch or pcie; shared-memory between the ranks of a host processor
  bandwidth           per GPU, in one direction: half of what "bidirectional" figures say
  latency             of one hop
inter_node            link between nodes; leave it out where there is only one node
  kind                infiniband, roce, efa or ethernet
  bandwidth           per NODE, all its network cards together, in one direction: eight cards of 400 Gbit/s are 3200 Gbit/s
  latency             of one hop
  per_node            network cards of a node; one a GPU when absent
host                  of one node
  memory              RAM
  memory_bandwidth    of the RAM; what the CPU optimizer streams at
  cpu_cores           physical cores
  pcie_bandwidth      between ONE GPU and pinned host memory, in one direction
nvme                  of one node; leave it out where there is none to offload to
  capacity, read_bandwidth, write_bandwidth
storage_bandwidth     of the whole cluster to where checkpoints go; without it the result says nothing of their time
price_per_gpu_hour    as "2.5 $/h"; without it the result says nothing of money
)";
}

} // namespace shardwright
