#include "planner/costs/host_costs.hpp"

namespace shardwright {

namespace {

// One kernel of an eager network: modules, views, Python, dispatcher, autograd and cudaLaunchKernel. measured where the
// host is the bound, as milliseconds over kernels of the source: 25 us in BERT-base on a TITAN RTX (6 ms for 12 layers
// of 20 kernels at 8 x 8 tokens, huggingface.co/docs/transformers/v4.8.0/benchmarks), 24 in a decoding BLOOM of 24
// layers on an A100 (13.8 ms a token, 24 kernels a layer; github.com/bigcode-project/bigcode-inference-benchmark), 30
// in a network on an A100 (17.8 ms for 583 operations, github.com/pytorch/pytorch/issues/82793), 32 in a decoding
// LLaMA-7B on an A100 (25.5 tokens/s, 38 kernels a layer, pytorch.org/blog/accelerating-generative-ai-2), 26 in the
// backward of a small matmul (136 us, of which 31 to enter the engine, for four kernels on an A100;
// github.com/pytorch/pytorch/issues/157407 and 44484). The geometric mean. Newer hosts are faster: torch's linear layer
// takes 13 us on a DGX H100, 33 on a Grace CPU (github.com/NVIDIA/TransformerEngine/issues/2053).
constexpr double kEagerKernel = 27e-6;

// measured: 6.8 to 9.1 us for one kernel of a graph that TorchInductor compiled, 33 to 44 us to enter the graph, of
// which a kernel's share is taken away; 3.0 us for the driver's launch alone
// (github.com/meta-pytorch/tritonbench/pull/1017).
constexpr double kCompiledKernel = 8e-6;
constexpr double kCompiledGraph = 30e-6;
constexpr double kDriverLaunch = 3e-6;

// measured: 17 us (github.com/pytorch/pytorch/issues/189573) and 5 us on a faster host (the same, second comment) of
// apply() beyond the call itself; the geometric mean. assumed: its backward, Python called from the engine, as much.
constexpr double kFunction = 9e-6;

// measured: 350 us for a checkpointed region of three kernels and their recomputation, 40 us more to save, set and set
// back the states of the random generators (github.com/pytorch/torchtitan/pull/2380); less the three kernels.
constexpr double kCheckpoint = 390e-6 - 3 * kEagerKernel;

// One call of torch.distributed with NCCL. measured: 89 us for all_reduce, 131 for all_gather, 122 for reduce_scatter
// (github.com/pytorch/pytorch/issues/138773). assumed: others like all_reduce.
constexpr double kAllReduce = 89e-6;
constexpr double kAllGather = 131e-6;
constexpr double kReduceScatter = 122e-6;

} // namespace

HostCosts::HostCosts(const PlanInput& input)
    : m_python(!std::holds_alternative<NativeOptions>(input.strategy.options) && // shardrun is a C++ program
               !input.cluster.gpu.isHostProcessor())
{
    const double launch = input.cluster.gpu.isHostProcessor() ? 0 : kDriverLaunch; // its kernels are function calls
    m_kernel = m_python ? kEagerKernel : launch;
    m_nativeCollective = launch;
    m_compiledKernel = kCompiledKernel;
    m_compiledGraph = kCompiledGraph;
    m_function = m_python ? kFunction : 0;
    m_checkpoint = m_python ? kCheckpoint : 0;
}

double HostCosts::collective(OpKind kind) const
{
    if (!m_python)
        return m_nativeCollective;
    switch (kind) {
    case OpKind::AllGather: return kAllGather;
    case OpKind::ReduceScatter: return kReduceScatter;
    default: return kAllReduce;
    }
}

} // namespace shardwright
