// ZeRO-3's optimizer step: on the GPU, on the host, from NVMe.

#include "planner/frameworks/deepspeed/zero3_emission.hpp"

#include <algorithm>

namespace shardwright {

void Zero3Emission::optimizerStep()
{
    m_layer = -1;
    const OpId checked = copy(OpKind::Copy, Stream::Compute, Phase::Optimizer, m_rules.m_check);
    once(m_rules.m_overflow);
    once(m_rules.m_norm);
    block(checked, Phase::Optimizer); // overflow and norm are read on the host: item()
    for (std::size_t group = 0; group < m_rules.m_subGroups.size(); ++group)
        stepGroup(group);
    const OpId updated = m_builder.op(OpKind::Release, Stream::Compute, Phase::Optimizer);
    const OpId gathering = m_builder.op(OpKind::AllGather, Stream::AllGather, Phase::Optimizer);
    m_builder.send(m_rules.m_persistentGather, m_rules.m_shardGroup);
    m_builder.wait(updated);
    if (m_rules.m_shardRanks == 1)
        m_record.move({m_shards}, {m_persistent});
    m_record.collective(Verb::AllGather, m_rules.m_shardGroup, {m_shards}, {m_persistent});
    m_builder.op(OpKind::Release, Stream::Compute, Phase::AfterStep);
    m_builder.wait(gathering);
    m_builder.blockHost(m_lastStateWrite);
    for (BufferId& secondary : m_secondaries)
        drop(secondary); // stage3.py invalidate_secondary_tensor
}

void Zero3Emission::stepGroup(std::size_t index)
{
    const Zero3Rules::SubGroup& group = m_rules.m_subGroups[index];
    if (!group.onGpu) {
        stepOnHost(index);
        return;
    }
    const DeepSpeedDtypes& dtypes = m_rules.m_dtypes;
    const Tensors tensors = records() ? tensorsOfGroup(group) : Tensors{};
    copy(OpKind::Copy, Stream::Compute, Phase::Optimizer, group.prepare);
    if (m_rules.offloadsOptimizer()) {
        stepBesideTheHost(index);
        putParametersAway(index);
        return;
    }
    BufferId flat = allocateShards(group.flat, Quantity::Gradients, dtypes.accumulate, tensors);
    m_record.move({gradients()}, {flat});
    BufferId gradient = flat;
    BufferId wide = -1;
    if (dtypes.accumulate != dtypes.master) {
        gradient = wide = allocateShards(group.wide, Quantity::Gradients, dtypes.master, tensors);
        m_record.move({flat}, {wide});
        drop(flat);
    }
    clip(gradient);
    copy(OpKind::OptimizerStep, Stream::Compute, Phase::Optimizer, group.step);
    once(group.foreach);
    m_record.update({gradient}, {m_master, m_moments});
    if (m_rules.paramOn(OffloadDevice::None) && index + 1 == m_rules.m_subGroups.size())
        m_record.move({m_master}, {m_shards});
    drop(wide);
    drop(flat);
    putParametersAway(index);
}

void Zero3Emission::putParametersAway(std::size_t index)
{
    if (m_rules.paramOn(OffloadDevice::None))
        return;
    const std::vector<Zero3Rules::SubGroup>& groups = m_rules.m_subGroups;
    const Zero3Rules::SubGroup& group = groups[index];
    if (group.onGpu) {
        const OpId down = copy(OpKind::CopyToHost, Stream::Compute, Phase::Optimizer, group.parametersDown);
        if (index + 1 == groups.size() || !groups[index + 1].onGpu) { // those of all sub-groups on the GPU
            Buffers homes = hostHomesOf(m_onGpu);
            homes.push_back(m_shards);
            m_record.move({m_master}, homes);
        }
        block(down, Phase::Optimizer);
    }
    if (!m_rules.paramOn(OffloadDevice::Nvme))
        return;
    Layout landing = shardsOf(onNvme(records() ? tensorsOfGroup(group) : Tensors{}));
    const bool lands = !landing.tensors.empty();
    if (lands) {
        landing.room = m_rules.largestSubGroup();
        m_record.hold(m_landing, Quantity::Parameters, m_rules.m_dtypes.model, landing, m_rules.m_shardGroup);
    }
    if (group.onGpu) {
        const OpId down = copy(OpKind::CopyToHost, Stream::Compute, Phase::Optimizer, group.parametersLand);
        if (lands)
            m_record.move({m_master}, {m_landing});
        block(down, Phase::Optimizer);
    }
    const OpId write = copy(OpKind::NvmeWrite, Stream::Nvme, Phase::Optimizer, group.parametersWrite);
    if (lands) {
        if (!group.onGpu)
            m_record.move({group.onNvme ? swapOf(index).master : m_hostMaster}, {m_landing});
        m_record.move({m_landing}, {m_nvmeShards});
        Layout nothing;
        nothing.room = landing.room;
        m_record.hold(m_landing, Quantity::Parameters, m_rules.m_dtypes.model, nothing);
    }
    block(write, Phase::Optimizer); // SwapBufferPool.swap_out waits
}

/// stage3.py backup_optimizer. All such sub-groups are stepped with the first.
void Zero3Emission::stepBesideTheHost(std::size_t index)
{
    copy(OpKind::OptimizerStep, Stream::Compute, Phase::Optimizer, m_rules.m_subGroups[index].step);
    once(m_rules.m_subGroups[index].foreach);
    if (index > 0)
        return;
    clip(m_wideGradients);
    m_record.update({m_wideGradients}, {m_master, m_moments});
    if (m_rules.paramOn(OffloadDevice::None))
        m_record.move({m_master}, {m_shards});
}

void Zero3Emission::clip(BufferId gradient)
{
    if (m_rules.m_training.gradientClipping)
        m_record.clip(m_rules.m_shardGroup, {gradient}, {gradients()});
}

void Zero3Emission::stepOnHost(std::size_t index)
{
    const std::vector<Zero3Rules::SubGroup>& groups = m_rules.m_subGroups;
    const Zero3Rules::SubGroup& group = groups[index];
    OpId read = -1;
    if (group.onNvme) {
        read = m_nextRead >= 0 ? std::exchange(m_nextRead, -1) : readStates(index);
        if (m_rules.m_options.pipelineRead && index + 1 < groups.size() && groups[index + 1].onNvme) {
            block(read, Phase::Optimizer);
            m_nextRead = readStates(index + 1);
        }
    }
    const OpId stepped = copy(OpKind::HostOptimizerStep, Stream::Host, Phase::Optimizer, group.step);
    m_builder.blockHost(read);
    if (group.onNvme)
        stepSwapped(index);
    else if (!m_steppedOnHost)
        stepAllOnHost();
    block(stepped, Phase::Optimizer);
    if (group.persistent > 0) {
        const OpId up = copy(OpKind::CopyToDevice, Stream::Compute, Phase::Optimizer, group.persistentUp);
        m_record.move({group.onNvme ? swapOf(index).master : m_hostMaster}, {m_shards});
        block(up, Phase::Optimizer);
    }
    putParametersAway(index);
    if (group.onNvme) {
        if (m_rules.m_options.pipelineWrite)
            block(m_lastStateWrite, Phase::Optimizer);
        m_lastStateWrite = copy(OpKind::NvmeWrite, Stream::Nvme, Phase::Optimizer, group.stateWrite);
        m_record.move({swapOf(index).master}, {m_nvme.master});
        m_record.move({swapOf(index).moments}, {m_nvme.moments});
        if (!m_rules.m_options.pipelineWrite)
            block(m_lastStateWrite, Phase::Optimizer);
    }
    // fp16_partitioned_groups_flat.copy_(): master weights are not page-locked
    if (!m_rules.paramOn(OffloadDevice::None))
        return;
    const OpId up = copy(OpKind::CopyToDevice, Stream::Compute, Phase::Optimizer, group.parametersUp);
    if (group.onNvme)
        m_record.move({swapOf(index).master}, {m_shards});
    else if (std::none_of(groups.begin() + static_cast<std::ptrdiff_t>(index) + 1, groups.end(),
                          [](const Zero3Rules::SubGroup& later) { return !later.onNvme; }))
        m_record.move({m_hostMaster}, {m_shards});
    block(up, Phase::Optimizer);
}

void Zero3Emission::stepAllOnHost()
{
    m_steppedOnHost = true;
    clip(m_hostWide);
    m_record.update({m_hostWide}, {m_hostMaster, m_hostMoments});
    m_record.move({m_hostMaster}, hostHomesOf(m_onHost));
}

void Zero3Emission::stepSwapped(std::size_t index)
{
    const Swapped& swap = swapOf(index);
    clip(swap.gradient);
    m_record.update({swap.gradient}, {swap.master, swap.moments});
    m_record.move({swap.master}, hostHomesOf(records() ? tensorsOfGroup(m_rules.m_subGroups[index]) : Tensors{}));
}

OpId Zero3Emission::readStates(std::size_t index)
{
    const Zero3Rules::SubGroup& group = m_rules.m_subGroups[index];
    const OpId read = copy(OpKind::NvmeRead, Stream::Nvme, Phase::Optimizer, group.stateRead);
    if (!records())
        return read;
    const DeepSpeedDtypes& dtypes = m_rules.m_dtypes;
    const Swapped& swap = swapOf(index);
    Layout layout = shardsOf(tensorsOfGroup(group));
    layout.room = m_rules.largestSwap();
    const auto bring = [&](BufferId from, BufferId to, Quantity quantity, DType dtype) {
        if (to < 0)
            return;
        m_record.hold(to, quantity, dtype, layout, m_rules.m_shardGroup);
        m_record.move({from}, {to});
    };
    bring(m_nvme.master, swap.master, Quantity::Parameters, dtypes.master);
    bring(m_nvme.gradient, swap.gradient, Quantity::Gradients, dtypes.master);
    if (m_record.exists(m_rules.m_swapMoments))
        bring(m_nvme.moments, swap.moments, Quantity::Moments, dtypes.states);
    return read;
}

} // namespace shardwright
