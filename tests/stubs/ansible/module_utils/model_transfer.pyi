from model_transfer import *
