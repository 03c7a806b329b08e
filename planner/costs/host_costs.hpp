#pragma once

// Seconds that the host needs to issue work. A training program is one Python thread a GPU: where its kernels are
// short, the GPU waits for it. What counts is who issues: Python and the dispatcher kernel by kernel, a compiled graph,
// or a program without Python.

#include "core/schedule.hpp"
#include "planner/plan_input.hpp"

namespace shardwright {

class HostCosts {
public:
    explicit HostCosts(const PlanInput& input);

    double kernel() const { return m_kernel; } // outside of compiled graphs
    double compiledKernel() const { return m_compiledKernel; }
    double compiledGraph() const { return m_compiledGraph; } // to enter one: once a pass of a block
    double function() const { return m_function; }           // a torch.autograd.Function around a kernel, in one pass
    double checkpoint() const { return m_checkpoint; }       // around a recomputed region, besides its kernels
    double collective(OpKind kind) const;

private:
    double m_kernel = 0;
    double m_compiledKernel = 0;
    double m_compiledGraph = 0;
    double m_function = 0;
    double m_checkpoint = 0;
    double m_nativeCollective = 0;
    bool m_python = true;
};

} // namespace shardwright
