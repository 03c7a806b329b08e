// The optimizer's step under ZeRO-1 and ZeRO-2, on the GPU or on the host.

#include "planner/frameworks/deepspeed/zero12_emission.hpp"

namespace shardwright {

void Zero12Emission::optimizerStep()
{
    m_layer = -1;
    if (m_rules.offload())
        stepOnHost();
    else
        stepOnGpu();
    m_builder.op(OpKind::AllGather, Stream::Compute, Phase::Optimizer);
    m_builder.send(m_rules.m_gather, m_rules.m_world);
    m_record.collective(Verb::AllGather, m_rules.m_world, {m_flat}, {m_flat});
    m_builder.op(OpKind::Release, Stream::Compute, Phase::AfterStep);
    dropAccumulated();
}

void Zero12Emission::clip(BufferId gradient)
{
    if (m_rules.m_training.gradientClipping)
        m_record.clip(m_rules.m_world, {gradient});
}

void Zero12Emission::stepOnHost()
{
    // step waits for the copies (synchronize()), then the host steps itself
    const OpId ready = m_builder.op(OpKind::Release, Stream::Compute, Phase::Optimizer);
    const OpId stepped = copy(OpKind::HostOptimizerStep, Stream::Host, Phase::Optimizer, m_rules.m_step);
    m_builder.blockHost(ready);
    clip(m_hostGradient);
    m_record.update({m_hostGradient}, {m_master, m_moments});
    m_record.move({m_master}, {m_staging});
    m_builder.op(OpKind::CopyToDevice, Stream::Compute, Phase::Optimizer);
    m_builder.move(m_rules.m_parametersUp);
    m_builder.blockHost(stepped);
    m_record.move({m_staging}, {m_flat});
}

void Zero12Emission::stepOnGpu()
{
    const DeepSpeedDtypes& dtypes = m_rules.m_dtypes;
    const OpId checked = copy(OpKind::Copy, Stream::Compute, Phase::Optimizer, m_rules.m_check);
    BufferId overflow = m_record.allocateScratch(m_rules.m_overflow);
    drop(overflow);
    BufferId norm = m_record.allocateScratch(m_rules.m_norm);
    drop(norm);
    copy(OpKind::Copy, Stream::Compute, Phase::Optimizer, m_rules.m_prepare);
    m_builder.blockHost(checked); // overflow and norm are read on the host: item()
    dropAccumulated();
    BufferId flat = allocateState(m_rules.m_flatGradient, Quantity::Gradients, dtypes.accumulate, m_part);
    m_record.move({m_averaged}, {flat});
    BufferId gradient = flat;
    BufferId cast = -1;
    if (dtypes.accumulate != dtypes.master) {
        gradient = cast = allocateState(m_rules.m_castGradient, Quantity::Gradients, dtypes.master, m_part);
        m_record.move({flat}, {cast});
        drop(flat);
    }
    clip(gradient);
    drop(m_averaged);
    copy(OpKind::OptimizerStep, Stream::Compute, Phase::Optimizer, m_rules.m_step);
    BufferId foreach = m_record.allocateScratch(m_rules.m_foreach);
    drop(foreach);
    m_record.update({gradient}, {m_master, m_moments});
    m_record.move({m_master}, {m_flat});
    drop(cast);
    drop(flat);
}

void Zero12Emission::dropAccumulated()
{
    for (std::vector<Held>& layer : m_held)
        for (Held& held : layer)
            drop(held.accumulated);
}

} // namespace shardwright
