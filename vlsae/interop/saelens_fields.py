"""Fields of SAELens' `cfg.json`, from its first files to version 6.54, with those of SAE-V: what codes depend on, and the rest.

From version 6 on the forward pass reads fields of the top level alone, and `metadata` is free; before, all fields lie flat.
"""

from __future__ import annotations

ALL = {"architecture", "d_in", "d_sae", "dtype", "metadata", "activation_fn", "activation_fn_str", "activation_fn_kwargs",
       "apply_b_dec_to_input", "normalize_activations", "reshape_activations", "finetuning_scaling_factor"}  # fmt: skip
SPARSE = {"k", "activation_fn_kwargs.k", "rescale_acts_by_decoder_norm"}
SOME = {
    "topk": SPARSE,
    "abstopk": SPARSE,
    "batchtopk": SPARSE,
    "matryoshka_batchtopk": {*SPARSE, "matryoshka_widths"},
    "matching_pursuit": {"residual_threshold", "max_iterations", "stop_on_duplicate_support"},
    "transcoder": {"d_out"},
    "jumprelu_transcoder": {"d_out"},
}  # which are read of some architectures only, ALL of every one
ORIGIN = """
    model_name model_class_name model_from_pretrained_kwargs local_model_path hook_name hook_point hook_layer hook_point_layer
    hook_head_index hook_point_head_index hook_name_out hook_head_index_out hook_eval hook_point_eval hook_names
    hook_head_indices hf_hook_name hf_hook_name_out context_size prepend_bos exclude_special_tokens seqpos_slice dataset_path
    dataset_trust_remote_code neuronpedia_id sae_lens_version sae_lens_training_version device
"""  # which activations
TRAINING = """
    act_store_device activations_mixing_fraction adam_beta1 adam_beta2 autocast autocast_lm aux_loss_coefficient
    b_dec_init_method cached_activations_path checkpoint_path compile_llm compile_sae dead_feature_estimation_method
    dead_feature_threshold dead_feature_window decoder_heuristic_init decoder_heuristic_init_norm decoder_init_norm
    decoder_orthogonal_init disable_concat_sequences end_pos_offset eval_batch_size_prompts eval_every_n_wandb_logs
    expansion_factor feature_reinit_scale feature_sampling_method feature_sampling_window finetuning_method finetuning_tokens
    from_pretrained_path init_encoder_as_decoder_transpose is_dataset_tokenized jumprelu_bandwidth jumprelu_init_threshold
    jumprelu_sparsity_loss_mode jumprelu_ste_to_input jumprelu_tanh_scale l0_coefficient l0_warm_up_steps l1_coefficient
    l1_warm_up_steps llm_compilation_mode llm_device log_activations_store_to_wandb log_optimizer_state_to_wandb log_to_wandb
    log_weights_to_wandb logger lp_norm lr lr_decay_steps lr_end lr_scheduler_name lr_warm_up_steps model_kwargs
    mse_loss_normalization n_batches_for_norm_estimate n_batches_in_buffer n_checkpoints n_eval_batches n_restart_cycles
    noise_scale normalize_sae_decoder output_path pre_act_loss_coefficient prefetch_llm_batches resample_batches resume
    resume_from_checkpoint run_name sae sae_compilation_mode save_final_checkpoint scale_sparsity_penalty_by_decoder_norm seed
    sequence_separator_token start_pos_offset store_batch_size store_batch_size_prompts streaming target_l0 tokens_per_buffer
    topk_threshold_lr total_training_tokens train_batch_size train_batch_size_tokens training_tokens use_cached_activations
    use_chat_formatting use_ghost_grads use_matryoshka_aux_loss use_sparse_activations verbose wandb_entity wandb_id
    wandb_log_frequency wandb_project
"""  # noise_scale too: since version 3 it is added in training alone


def known(architecture: str) -> set[str]:
    """Fields that are read of this architecture, and those that change codes of none."""
    return ALL | SOME.get(architecture, set()) | {*ORIGIN.split(), *TRAINING.split()}
