"""What a person sees of a sweep: TensorBoard, lines on the terminal, the table of trials."""
