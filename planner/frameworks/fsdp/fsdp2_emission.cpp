// The step under FSDP2: what there is, where it begins, and what is stepped.

#include "planner/frameworks/fsdp/fsdp2_emission.hpp"

namespace shardwright {

Fsdp2Emission::Fsdp2Emission(const Fsdp2Rules& rules)
    : FsdpEmission(rules.m_sizes, rules.m_shape), m_rules(rules), m_states(rules.m_shape.units.units.size())
{
}

void Fsdp2Emission::initialise()
{
    for (int unit = 0; unit < unitCount(); ++unit) {
        if (empty(unit))
            continue;
        UnitState& state = stateOf(unit);
        op(OpKind::Allocate, Stream::Compute, Phase::Init);
        // shardrun builds nothing but the shards.
        const BufferId whole = builder().records() ? -1 : builder().allocate(sizesOf(unit).init);
        state.parameters = builder().allocate(sizesOf(unit).persistent, trained(unit, Quantity::Parameters));
        if (offload())
            state.hostGradient = builder().allocate(sizesOf(unit).hostGradient, trained(unit, Quantity::Gradients));
        builder().act(Verb::Initialize, {}, {state.parameters, state.hostGradient});
        if (whole >= 0)
            builder().free(whole);
    }
    op(OpKind::Allocate, Stream::Compute, Phase::Init);
    for (int unit = 0; unit < unitCount(); ++unit)
        if (sizesOf(unit).trainable > 0 && keepsMoments()) {
            stateOf(unit).moments = builder().allocate(sizesOf(unit).moments, trained(unit, Quantity::Moments));
            builder().act(Verb::Initialize, {}, {stateOf(unit).moments});
        }
}

Content Fsdp2Emission::shardOf(int unit) const
{
    Content content = wholeContent(Quantity::Parameters, shape().trained, tensorsOf(unit));
    content.layout.cut = Cut::EachRows;
    content.layout.parts = sizesOf(unit).ranks;
    content.group = sizesOf(unit).sharded() ? sizesOf(unit).group : -1;
    return content;
}

Stepped Fsdp2Emission::stepped() const
{
    Stepped all;
    for (int unit = 0; unit < unitCount(); ++unit)
        if (const UnitState& state = m_states[static_cast<std::size_t>(unit)]; sizesOf(unit).trainable > 0) {
            all.gradients.push_back(offload() ? state.hostGradient : state.gradientShard);
            all.parameters.push_back(state.parameters);
            all.moments.push_back(state.moments);
        }
    return all;
}

void Fsdp2Emission::enterRootForward(OpId compute)
{
    m_gatherGate = compute;
    m_lastCollective = {-1, -1};
    m_lastReduced = {-1, -1};
    m_forwardCopyOut = -1;
    m_lastScatter = -1;
}

void Fsdp2Emission::drop(BufferId& buffer)
{
    if (buffer >= 0)
        builder().free(buffer);
    buffer = -1;
}

void Fsdp2Emission::takeTurn(int unit, OpId collective)
{
    OpId& last = m_lastCollective[isExperts(unit) ? 1 : 0];
    builder().wait(last);
    last = collective;
}

Schedule Fsdp2Rules::emit() const
{
    return Fsdp2Emission(*this).run();
}

} // namespace shardwright
