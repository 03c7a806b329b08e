// BF16_Optimizer (runtime/bf16_optimizer.py, "bf16"): bf16 with fp32 gradient accumulation, at stage 0 and 1 alike. It
// shards master weights and moments over the ranks but keeps a whole fp32 gradient on each.

#include "planner/frameworks/deepspeed/deepspeed_rules.hpp"
#include "planner/frameworks/deepspeed/recording.hpp"
#include "planner/frameworks/deepspeed/tensor_order.hpp"
#include "planner/frameworks/optimizer_rules.hpp"

namespace shardwright {

namespace {

using C = Category;
using S = Stream;
using L = Lifetime;

constexpr std::int64_t kAlignment = 2; // bf16 nccl_start_alignment_factor

constexpr BufferSpec kModule{"module before it is flattened", "2 B x P", "bf16 _setup_for_real_optimizer",
                             C::Temporaries};
constexpr BufferSpec kFlat{"flat bf16 parameters, whole",
                           "2 B x P, padded to a multiple of 2 N; frozen ones beside it",
                           "bf16 bf16_groups_flat",
                           C::Parameters,
                           Place::Gpu,
                           S::Compute,
                           L::Persistent};
constexpr BufferSpec kMaster{"master partition",  "4 B x P/N", "bf16 fp32_groups_flat_partition",
                             C::MasterParameters, Place::Gpu,  S::Compute,
                             L::Persistent};
constexpr BufferSpec kWideGradients{"fp32 gradients, whole",
                                    "4 B x P",
                                    "bf16 fp32_groups_gradients_flat",
                                    C::Gradients,
                                    Place::Gpu,
                                    S::Compute,
                                    L::Persistent};
// initialize_optimizer_states takes a step with zero gradients: the moments exist before the first batch.
constexpr BufferSpec kMoments{"optimizer states of the partition",
                              "moments x 4 B x P/N",
                              "bf16 initialize_optimizer_states",
                              C::OptimizerStates,
                              Place::Gpu,
                              S::Compute,
                              L::Persistent};
// clear_lp_grads zeroes them: they stay allocated from the first backward on.
constexpr BufferSpec kNarrowGradients{"bf16 gradients, whole, zeroed and kept",
                                      "2 B x P",
                                      "bf16 clear_lp_grads",
                                      C::Gradients,
                                      Place::Gpu,
                                      S::Compute,
                                      L::FromFirstStep};
constexpr BufferSpec kGradient{"gradient of a module, added to the kept one", "2 B x numel", "torch autograd",
                               C::Gradients};
constexpr BufferSpec kCast{"gradients in the communication dtype", "w x P", "engine allreduce_bucket",
                           C::CommunicationBuffers};
constexpr BufferSpec kForeach{"temporaries of the foreach optimizer", "4 B x P/N",
                              "torch/optim/adamw.py _multi_tensor_adamw", C::Temporaries};

class Bf16OptimizerRules final : public DeepSpeedRules {
public:
    explicit Bf16OptimizerRules(const PlanInput& input) : DeepSpeedRules(input), m_order(m_activations)
    {
        resize(input);
    }

    void resize(const PlanInput& input) override
    {
        take(input);
        m_padded = roundUp(m_order.elements(), checkedMultiply(kAlignment, m_ranks));
        const Bytes frozen = bytesOf(frozenParameters(), m_dtypes.frozen);
        m_module = m_sizes.addBuffer(kModule, bytesOf(m_order.elements(), m_dtypes.model));
        m_flat = m_sizes.addBuffer(kFlat, bytesOf(m_padded, m_dtypes.model) + frozen);
        m_master = m_sizes.addBuffer(kMaster, bytesOf(steppedElements(), DType::Fp32));
        m_wide = m_sizes.addBuffer(kWideGradients, bytesOf(m_padded, DType::Fp32));
        m_moments = m_sizes.addBuffer(kMoments, stateBytes(steppedElements()));
        m_narrow = m_sizes.addBuffer(kNarrowGradients, bytesOf(m_order.elements(), m_dtypes.model));
        m_gradients.clear();
        for (std::size_t type = 0; type < m_model.layerTypes.size(); ++type) {
            m_gradients.emplace_back();
            for (const LeafModule& module : m_activations.modules(static_cast<int>(type)))
                m_gradients.back().push_back(
                    module.trainable == 0 ? -1
                                          : m_sizes.addBuffer(kGradient, bytesOf(module.trainable, m_dtypes.model),
                                                              static_cast<int>(type)));
        }
        m_cast = m_sizes.addBuffer(kCast, m_dtypes.wire == DType::Fp32 ? Bytes(0) : bytesOf(m_padded, m_dtypes.wire));
        m_foreach = m_sizes.addBuffer(kForeach, foreachTemporaries(m_training) ? bytesOf(steppedElements(), DType::Fp32)
                                                                               : Bytes(0));
        m_reduce = m_sizes.addPayload({"gradients", "w x P", "engine buffered_allreduce_fallback",
                                       bytesOf(m_padded, m_dtypes.wire), m_dtypes.wire});
        const std::int64_t elements = m_order.elements();
        const Bytes narrow = bytesOf(elements, m_dtypes.model);
        const Bytes wide = bytesOf(elements, DType::Fp32);
        const auto add = [this](std::string_view name, std::string_view formula, std::string_view source, Bytes moved) {
            return m_sizes.addPayload({name, formula, source, moved, DType::Fp32});
        };
        m_accumulate = add("gradients added to the zeroed ones", "6 B x P", "torch AccumulateGrad", narrow * 3);
        // add_() of the bf16 gradient to the fp32 one, then zero_().
        m_update = add("fp32 gradients updated, bf16 ones zeroed", "12 B x P", "bf16 update_hp_grads, clear_lp_grads",
                       narrow * 2 + wide * 2);
        const Bytes wire = bytesOf(m_padded, m_dtypes.wire);
        m_prepare = add("gradients divided", "2 w x P", "engine allreduce_bucket",
                        wire * 2 + (m_dtypes.wire == DType::Fp32 ? Bytes(0) : (wire + wide) * 2));
        const Bytes partition = bytesOf(steppedElements(), DType::Fp32);
        m_clip = add("norm and clipping of the whole gradient, and its zeroing", "16 B x P",
                     "bf16 step: get_global_norm_of_tensors, clip_tensors_by_global_norm, clear_hp_grads",
                     wide * (m_training.gradientClipping ? 4 : 2));
        m_step = add("optimizer step", "accesses x P/N + 6 B x P/N", "ops/adam; bf16 update_lp_params",
                     optimizerStepBytes(m_training.optimizer, torchOptimizerForm(m_training), steppedElements(),
                                        {DType::Fp32, DType::Fp32, DType::Fp32}) +
                         partition + bytesOf(steppedElements(), m_dtypes.model));
        m_gather = m_sizes.addPayload({"updated parameters", "2 B x P", "bf16 step: all_gather_dp_groups",
                                       bytesOf(m_padded, m_dtypes.model), m_dtypes.model});
    }

    std::string structureKey() const override { return commonKey(); }

    ModelStates modelStates() const override
    {
        ModelStates states;
        states.parameters = bytesOf(m_padded, m_dtypes.model) + bytesOf(frozenParameters(), m_dtypes.frozen);
        states.gradients = bytesOf(m_order.elements(), m_dtypes.model) + bytesOf(m_padded, DType::Fp32);
        states.masterParameters = bytesOf(steppedElements(), DType::Fp32);
        states.optimizerStates = stateBytes(steppedElements());
        return states;
    }

    Schedule emit() const override { return Emission(*this).run(); }

protected:
    std::int64_t steppedElements() const override { return m_padded / m_ranks; }

private:
    class Emission final : public StageObserver {
    public:
        explicit Emission(const Bf16OptimizerRules& rules)
            : m_rules(rules), m_builder(rules.m_sizes, rules.recording()), m_record(m_builder),
              m_walk(rules.m_activations)
        {
            if (!m_record.records())
                return;
            m_part = {tensorsOf(rules.m_order), Cut::Flat, rules.m_ranks, kAlignment};
            m_whole = m_part;
            m_whole.allParts = true;
        }

        Schedule run()
        {
            initialise();
            m_walk.carryOver(m_builder);
            if (m_rules.pipelined())
                emitPipeline(m_builder, m_rules.m_activations, *m_rules.m_slice, m_rules.pipeline(), *this,
                             {[](const MicroStep&) {}, [this](const MicroStep& step) { endBackward(step); }});
            else
                for (const MicroStep& step : microSteps(m_rules.m_training.gradientAccumulation)) {
                    m_builder.beginSegment(step.name, step.repeat);
                    microStep(step);
                }
            m_builder.beginSegment("optimizer step");
            optimizerStep();
            return m_builder.finish();
        }

        BufferId gradientBuffer(int layer, int module) override
        {
            m_fresh = makeGradient(layer, module);
            return m_fresh;
        }

        void afterStage(Pass pass, int layer, int module) override
        {
            if (pass != Pass::Backward)
                return;
            if (m_fresh < 0)
                m_fresh = makeGradient(layer, module);
            if (m_fresh < 0)
                return;
            m_record.add({m_fresh}, {m_narrow});
            m_builder.free(std::exchange(m_fresh, -1));
        }

    private:
        BufferId makeGradient(int layer, int module)
        {
            const auto type = static_cast<std::size_t>(m_rules.m_model.layers[static_cast<std::size_t>(layer)]);
            const BufferClassId gradient = m_rules.m_gradients[type][static_cast<std::size_t>(module)];
            if (gradient < 0 || !m_record.records())
                return gradient < 0 ? -1 : m_builder.allocate(gradient);
            return m_record.allocate(gradient, Quantity::Gradients, m_rules.m_dtypes.model,
                                     wholeLayout(tensorsOf(m_rules.m_order, layer, module)));
        }

        void initialise()
        {
            const DType model = m_rules.m_dtypes.model;
            m_builder.beginSegment("initialisation");
            m_builder.op(OpKind::Allocate, Stream::Compute, Phase::Init);
            Layout unpadded;
            unpadded.tensors = m_whole.tensors;
            const BufferId module = m_record.allocate(m_rules.m_module, Quantity::Parameters, model, unpadded);
            m_flat = m_record.allocate(m_rules.m_flat, Quantity::Parameters, model, m_whole, m_rules.m_world);
            m_record.initialize({module});
            m_record.move({module}, {m_flat});
            m_builder.free(module);
            m_master = m_record.allocate(m_rules.m_master, Quantity::Parameters, DType::Fp32, m_part, m_rules.m_world);
            m_wide = m_record.allocate(m_rules.m_wide, Quantity::Gradients, DType::Fp32, m_whole, m_rules.m_world);
            m_moments = m_record.allocate(m_rules.m_moments, Quantity::Moments, m_rules.m_dtypes.states, m_part,
                                          m_rules.m_world);
            m_narrow = m_record.allocate(m_rules.m_narrow, Quantity::Gradients, model, unpadded);
            m_record.move({m_flat}, {m_master});
            m_record.initialize({m_wide, m_moments, m_narrow});
        }

        void optimizerStep()
        {
            m_builder.op(OpKind::Copy, Stream::Compute, Phase::Optimizer);
            m_builder.move(m_rules.m_clip);
            if (m_rules.m_training.gradientClipping)
                m_record.clip(-1, {m_wide}); // every rank has all of them
            m_builder.op(OpKind::OptimizerStep, Stream::Compute, Phase::Optimizer);
            m_builder.move(m_rules.m_step);
            const BufferId foreach = m_record.allocateScratch(m_rules.m_foreach);
            m_builder.free(foreach);
            m_record.update({m_wide}, {m_master, m_moments});
            m_record.move({m_master}, {m_flat});
            m_record.initialize({m_wide});
            m_builder.op(OpKind::AllGather, Stream::Compute, Phase::Optimizer);
            m_builder.send(m_rules.m_gather, m_rules.m_world);
            m_record.collective(Verb::AllGather, m_rules.m_world, {m_flat}, {m_flat});
        }

        void microStep(const MicroStep& step)
        {
            const int layers = static_cast<int>(m_rules.m_model.layers.size());
            m_walk.beginMicroStep(m_builder);
            for (int layer = 0; layer < layers; ++layer)
                m_walk.forward(m_builder, layer, *this);
            m_walk.loss(m_builder);
            for (int layer = layers - 1; layer >= 0; --layer)
                m_walk.backward(m_builder, layer, *this);
            endBackward(step);
            m_walk.endMicroStep(m_builder);
        }

        void endBackward(const MicroStep& step)
        {
            m_builder.op(OpKind::Copy, Stream::Compute, Phase::Backward);
            m_builder.move(m_rules.m_accumulate);
            m_builder.op(OpKind::Copy, Stream::Compute, Phase::Backward);
            m_builder.move(m_rules.m_update);
            m_record.add({m_narrow}, {m_wide});
            m_record.initialize({m_narrow});
            if (step.last) {
                m_builder.op(OpKind::Copy, Stream::Compute, Phase::Backward);
                m_builder.move(m_rules.m_prepare);
                m_builder.op(OpKind::AllReduce, Stream::Compute, Phase::Backward);
                const BufferId cast = m_record.allocate(m_rules.m_cast, Quantity::Gradients, m_rules.m_dtypes.wire,
                                                        m_whole, m_rules.m_world);
                m_builder.send(m_rules.m_reduce, m_rules.m_world);
                m_record.move({m_wide}, {cast});
                m_record.collective(Verb::AllReduce, m_rules.m_world, {},
                                    {m_record.exists(m_rules.m_cast) ? cast : m_wide});
                m_record.move({cast}, {m_wide});
                m_builder.free(cast);
            }
        }

        const Bf16OptimizerRules& m_rules;
        ScheduleBuilder m_builder;
        ContentRecorder m_record;
        ActivationWalk m_walk;
        Layout m_part, m_whole;
        BufferId m_flat = -1, m_master = -1, m_wide = -1, m_moments = -1, m_narrow = -1;
        BufferId m_fresh = -1; // gradient of the module whose backward runs
    };

    FlatOrder m_order;
    std::int64_t m_padded = 0;
    BufferClassId m_module = -1, m_flat = -1, m_master = -1, m_wide = -1, m_moments = -1, m_narrow = -1, m_cast = -1,
                  m_foreach = -1;
    std::vector<std::vector<BufferClassId>> m_gradients; // by layer type and module
    PayloadId m_reduce = -1, m_gather = -1, m_accumulate = -1, m_update = -1, m_prepare = -1, m_clip = -1, m_step = -1;
};

} // namespace

std::unique_ptr<FrameworkRules> makeBf16OptimizerRules(const PlanInput& input)
{
    return std::make_unique<Bf16OptimizerRules>(input);
}

} // namespace shardwright
