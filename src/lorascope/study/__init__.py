"""What a study is: the models that its file is read into, and what must hold of them."""
